"""The server's answers, and whom it gives none."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from mccompile.studio.serve import process
from mccompile.studio.serve.asked import MOST_BYTES
from mccompile.studio.serve.guard import COOKIE, Door
from tests.cli.conftest import Shell, shell  # noqa: F401  # the fixture
from tests.serve.conftest import Served, serving
from tests.serve.fakes import TEXT

ORDER = {"text": TEXT, "name": "mine", "preset": "small: 9 frames", "values": {}, "prompt": "now", "seed": 1}
JSON = {"Content-Type": "application/json"}


def ask(
    served: Served, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> tuple[int, str, http.client.HTTPMessage]:
    """Status, text and headers of one answer. body: JSON, or bytes as they are."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(served.host, timeout=30)
    try:
        given = {**(JSON if data is not None else {}), **(headers or {})}
        connection.request("GET" if data is None else "POST", path, data, given)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace"), answer.headers
    finally:
        connection.close()


def test_the_page_asks_nobody_else_for_anything(served: Served) -> None:
    status, text, headers = ask(served, "/")
    assert status == 200
    assert "ToyPipeline" in text
    assert 'value="shipped/motioncache"' in text
    assert "http" not in text.replace("https://arxiv", "")
    assert "default-src 'none'" in headers["content-security-policy"]
    for part in ("/page.js", "/page.css"):
        status, text, _ = ask(served, part)
        assert status == 200
        assert "://" not in text


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Host": "evil.example"}, "under other names than `evil.example`"),
        ({"Host": "127.0.0.1.evil.example:80"}, "under other names"),
        ({"Origin": "http://evil.example"}, "a page of another site"),
        ({"Origin": "null"}, "a page of another site"),
        ({"Sec-Fetch-Site": "cross-site"}, "a page of another site"),
        ({"Content-Type": "text/plain"}, "its content is no JSON"),
    ],
)
def test_requests_of_others_are_refused(headers: dict[str, str], said: str, served: Served) -> None:
    """A name that points here (DNS rebinding), another site's page, a form."""
    before = len(served.desk.runs())
    status, text, _ = ask(served, "/api/runs", ORDER, headers)
    assert status in (403, 415)
    assert "error[MC0763]" in text
    assert said in text
    assert len(served.desk.runs()) == before


def test_the_page_itself_is_let_in(served: Served) -> None:
    for name in (served.host, served.host.replace("127.0.0.1", "localhost")):
        own = {"Host": name, "Origin": f"http://{name}", "Sec-Fetch-Site": "same-origin"}
        assert ask(served, "/api/check", ORDER, own)[0] == 200


def test_elsewhere_a_token_is_asked_for(tmp_path: Path) -> None:
    door = Door.of("0.0.0.0")
    assert not Door.of("localhost").token
    assert len(door.token) >= 32
    for served in serving(tmp_path, door):
        assert ask(served, "/")[0] == 401
        assert ask(served, "/?token=wrong")[0] == 401
        status, _, headers = ask(served, f"/?token={door.token}&a=b")
        assert (status, headers["location"]) == (307, "/?a=b")
        cookie = headers["set-cookie"].partition(";")[0]
        assert cookie == f"{COOKIE}={door.token}"
        assert "HttpOnly" in headers["set-cookie"]
        assert "SameSite=strict" in headers["set-cookie"]
        assert ask(served, "/", headers={"Cookie": cookie, "Host": "box.example"})[0] == 200
        assert ask(served, "/", headers={"Cookie": cookie, "Origin": "http://evil.example"})[0] == 403


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"text": "policy mine {"}, 422, "error[MC01"),
        ({"values": {"n": 99}}, 422, "error[MC0302]"),
        ({"values": {"n": "2"}}, 422, "error[MC0310]"),
        ({"values": {"n": [2]}}, 400, "`values` is no object of numbers"),
        ({"values": {"n": 1e999}}, 400, "`values` is no object of numbers"),
        ({"preset": "huge"}, 400, "there is no size `huge`"),
        ({"prompt": " "}, 400, "the prompt has 1 characters"),
        ({"prompt": 5}, 400, "`prompt` is no str"),
        ({"seed": -1}, 400, "the seed is -1"),
        ({"seed": True}, 400, "`seed` is no int"),
        ({"name": "../x"}, 400, "is no name for a policy"),
    ],
)
def test_a_run_that_cannot_be_is_refused_at_once(
    change: Mapping[str, object], status: int, said: str, served: Served
) -> None:
    before = len(served.desk.runs())
    found, text, _ = ask(served, "/api/runs", {**ORDER, **change})
    assert (found, len(served.desk.runs())) == (status, before)
    assert said in json.loads(text)["error"]["text"]


def test_what_is_no_request_of_the_page(served: Served) -> None:
    for data in (b"{", b"[]", b"\xff", b"[" * 100_000):
        assert ask(served, "/api/check", data)[0] == 400
    assert ask(served, "/api/check", b'"' + b"x" * MOST_BYTES + b'"')[0] == 413
    for path in ("/x", "/worker.py", "/errors/MC9999", "/api/policy?name=../x", "/runs/99/report.html", "/..%2fapp.py"):
        assert ask(served, path)[0] == 404
    assert "MC0763" in ask(served, "/errors/mc0763")[1]


def test_a_run_has_results_and_nothing_else(served: Served) -> None:
    number = json.loads(ask(served, "/api/runs", ORDER)[1])["number"]
    while not served.desk.run(number).over:
        pass
    told = next(run for run in json.loads(ask(served, "/api/runs")[1]) if run["number"] == number)
    assert (told["state"], told["outcome"]["psnr"], told["seed"]) == ("done", 31.25, 1)
    status, _, headers = ask(served, f"/runs/{number}/report.html")
    assert status == 200
    assert headers["content-security-policy"].startswith("sandbox allow-scripts;")
    assert ask(served, f"/runs/{number}/side_by_side.mp4")[2]["content-type"] == "video/mp4"
    assert ask(served, f"/runs/{number}/..%2f..%2fmine.policy")[0] == 404


def test_a_port_that_is_taken(shell: Shell) -> None:  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = shell("serve", "--port", taken.getsockname()[1])
    assert (result.status, result.out) == (2, "")
    assert "error[MC0762]" in result.err
    assert "address already in use" in result.err
    assert "MC0762" in shell("serve", "--host", "203.0.113.1", "--port", "0").err


def test_a_model_that_is_none_is_told_of_before_a_process_is_started(
    shell: Shell, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    monkeypatch.setattr(process.WorkerProcess, "__init__", lambda *given: pytest.fail("a process was started"))
    result = shell("serve", "--model", "nope", "--port", "0")
    assert "MC0704" in result.err
    assert result.out == ""


def test_without_its_libraries_it_says_how_to_get_them(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    result = shell("serve")
    assert result.status == 2
    assert "error[MC0761]" in result.err
    assert "pip install 'mccompile[serve]'" in result.err
