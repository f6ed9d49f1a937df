"""The page of a record in a real browser: it loads without an error and a request, and everything on it works."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageColor
from playwright.sync_api import Page, sync_playwright

from mccompile.metrics.clips import read_clip
from mccompile.studio.report.errors import NoRecord
from mccompile.studio.report.figure import CALLS_PER_SECOND, COLOURS, Figure
from mccompile.studio.report.page import page_data, render
from mccompile.studio.report.reading import read_run
from mccompile.studio.report.record import masks_of
from mccompile.studio.report.stopwatch import Stopwatch
from tests.cli.conftest import Shell, shell  # noqa: F401  # the fixture
from tests.house.tree import DOCS
from tests.report.toy import CHUNKS, HIGH, STEPS, WIDE, action_of, colour_of, toy

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = toy()
    for name, write in record.files().items():
        write(tmp_path / name)
    found = read_run(tmp_path)
    assert (found.about, found.said, found.refusals, found.fps) == (
        record.about, record.said, record.refusals, record.fps,
    )  # fmt: skip
    assert (found.ways, found.events) == (record.ways, record.events)
    assert all(np.array_equal(a, b) for a, b in zip(found.videos, record.videos, strict=True))
    for one, other in (
        (found.masks, record.masks), (found.weights, record.weights), (found.thumbnails, record.thumbnails),
    ):  # fmt: skip
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[k], other[k]) for k in other)  # type: ignore[index]
    assert found.story == record.story


def test_what_is_no_record(tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    result = shell("report", tmp_path)
    assert (result.status, result.out) == (2, "")
    assert "error[MC0751]" in result.err
    error = NoRecord("out", "no run.json")
    assert f"```text\n{error}\n```" in (DOCS / "errors" / "MC0751.md").read_text()


def test_the_data_of_a_page_are_those_of_the_run() -> None:
    data = page_data(toy())
    cells = data["cells"]
    assert isinstance(cells, list)
    assert len(cells) == CHUNKS
    for chunk in cells:
        assert [cell["action"] for cell in chunk] == [action_of(step) for step in range(STEPS)]
    assert data["mask_width"] == WIDE
    assert cells[0][3]["mask"] == "999000" * HIGH
    assert data["worst"] == 7
    assert [len(way["steps"]) for way in data["ways"]] == [9, 9]  # type: ignore[attr-defined]
    assert cells[0][3]["weights"] == "999000" * HIGH
    assert data["accounts"] == [
        {"name": "account", "chunk": c, "steps": list(range(STEPS)), "values": [0.02 * s for s in range(STEPS)]}
        for c in range(CHUNKS)
    ]
    assert data["kept"] == {"rows": list(range(9)), "bytes": [1000 * (row + 1) for row in range(9)]}
    always, kept = data["regions"]  # type: ignore[misc]
    assert (always["name"], kept["name"]) == ("blocks 0 to 1, always computed", "blocks 2 to 5, keep residual")
    assert always["share"][2:4] == pytest.approx([2 / 3, 2 / 3])
    assert kept["share"][2:4] == pytest.approx([1 / 3, (0.5 + 1) / 3])
    assert data["surprises"] == ["call 3 (cond), chunk 1, step 1: the plan said reuse, it was full: step 1"]
    assert [len(way["steps"]) for way in data["flops"]] == [9, 9]  # type: ignore[attr-defined]
    assert data["shares"][0] == pytest.approx(1 / CHUNKS)  # type: ignore[index]


@pytest.mark.parametrize("kind", ["png", "svg", "mp4"])
def test_the_figure_has_a_framed_cell_for_each_step(kind: str, tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    for name, write in toy().files().items():
        write(tmp_path / name)
    path = tmp_path / f"grid.{kind}"
    result = shell("report", tmp_path, "--figure", path)
    assert result.status == 0, result.err
    assert result.out.endswith(f"wrote {path}\n")
    for line in (
        "motioncache: 2.00 s, 2.00x, 40.0% of the tokens, 35.0% of the FLOPs",
        "kept at most 9,000 bytes",
        "the plan settles 2 of 5 steps; 1 chunks did otherwise",
        "recording took 0.10 s of the run's 2.00 s (5.0%)",
        "guard vote changed 3 decisions",
    ):
        assert f"{line}\n" in result.out
    figure = Figure.of(toy())
    assert [cell.colour for cell in figure.cells].count(COLOURS["full"]) == 2 * CHUNKS
    assert len(figure.cells) == CHUNKS * STEPS
    if kind == "svg":
        drawn = ElementTree.fromstring(path.read_text()).findall(".//{http://www.w3.org/2000/svg}image")
        assert len(drawn) == CHUNKS * STEPS
        return
    if kind == "mp4":  # one picture a call, and the last for two seconds
        frames = read_clip(path).frames
        assert len(frames) == 9 + 2 * CALLS_PER_SECOND
        filled = [int((frame[20:224, 28:] < 0.9).any(-1).mean() * 100) for frame in frames[:9]]
        assert filled == sorted(filled)
        assert filled[0] < filled[-1] == int((frames[-1][20:224, 28:] < 0.9).any(-1).mean() * 100)
        return
    with Image.open(path) as picture:
        for cell in figure.cells:
            assert picture.getpixel((cell.x + 1, cell.y + 1)) == ImageColor.getrgb(cell.colour)
            chunk, step = (cell.y - 20) // 68, (cell.x - 28) // 68
            assert picture.getpixel((cell.x + 8, cell.y + 8)) == colour_of(chunk, step)


def test_a_figure_of_another_kind_is_refused(tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    result = shell("report", tmp_path, "--figure", "x.pdf")
    assert (result.status, result.out) == (2, "")
    assert "it is no png, no svg and no mp4" in result.err


def test_masks_belong_to_their_calls_or_to_none() -> None:
    record = toy()
    masks = [mask[None, :, :, None] for mask in record.masks.values()]
    found = masks_of(record.events, masks)
    assert all(np.array_equal(found[k], record.masks[k]) for k in record.masks)
    assert masks_of(record.events, masks[1:]) == {}


def test_steps_are_timed_by_way() -> None:
    watch = Stopwatch()
    announce = watch.watch(lambda name: lambda done, total: None)
    for name, steps in (
        ("vanilla: warm-up", 1),
        ("exact (policy): warm-up", 2),
        ("vanilla 1/2", 4),
        ("vanilla 2/2", 3),
    ):
        step = announce(name)
        for index in range(steps):
            step(index + 1, steps)
    assert len(watch.of("vanilla")) == 3
    assert len(watch.of("exact (policy)")) == 2
    assert watch.of("motioncache") == ()


@pytest.fixture(scope="module")
def page_text() -> str:
    return render(toy())


class Elements(HTMLParser):
    """The elements of a page: (tag, attributes), in order, and what the scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data


def test_the_page_is_whole_and_asks_for_nothing(page_text: str) -> None:
    """Without a browser: every element that the script looks for is there, and none names a place outside."""
    page = Elements(page_text)
    ids = {attributes["id"] for _, attributes in page.found if "id" in attributes}
    assert set(re.findall(r'by\("([a-z-]+)"\)', page.scripts[-1])) <= ids
    assert not [(t, a) for t, a in page.found if {"src", "href"} & a.keys() or t in ("link", "iframe", "img")]
    for name in ("frame", "call"):
        assert ("label", {"for": name}) in page.found
    assert json.loads(page.scripts[-2])["worst"] == 7


@in_chromium
def test_the_page_works(tmp_path: Path, page_text: str) -> None:
    """It loads without an error, asks nobody for anything, and is of use by mouse, by keyboard and on a phone."""
    place = tmp_path / "report.html"
    place.write_text(page_text, encoding="utf-8")
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=600_000)
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(600_000)  # against hanging for ever
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
        page.goto(place.as_uri())
        page.wait_for_selector("body[data-ready=yes]", state="attached")
        looked_at(page)
        played(page)
        on_a_phone(page)
        browser.close()
    assert wrong == []


def pixels(page: Page, selector: str) -> object:
    return page.eval_on_selector(selector, "canvas => canvas.toDataURL()")


def looked_at(page: Page) -> None:
    assert page.locator("#grid canvas").count() == CHUNKS * STEPS
    assert page.locator("#players canvas").count() == 3
    assert page.locator(".js-plotly-plot").count() == 8
    assert page.locator("td", has_text="<b>toy</b>").count() == 1  # what a record says is text, never markup
    unnamed = "[...document.querySelectorAll('canvas')].filter(c => !c.getAttribute('aria-label')).length"
    assert page.evaluate(unnamed) == 0


def played(page: Page) -> None:
    before = pixels(page, "#players figure:nth-child(2) canvas")
    page.get_by_role("button", name="Worst frame (7)").click()
    assert page.locator("#frame-said").inner_text() == "7"
    assert pixels(page, "#players figure:nth-child(2) canvas") != before
    first = pixels(page, "#chunks canvas")
    page.locator("#call").press("End")
    assert pixels(page, "#chunks canvas") != first
    page.locator("#call").press("Home")
    assert pixels(page, "#chunks canvas") == first
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#call-said").inner_text() == "3"
    assert "Call 3: 2 of 3 chunks compute something" in page.locator("#call-text").inner_text()
    assert pixels(page, "#chunks canvas") != first
    laid = pixels(page, "#chunks canvas")
    page.get_by_label("lay the computed tokens over the frames").press("Space")
    bare = pixels(page, "#chunks canvas")
    page.get_by_label("lay the weights of motion over them").press("Space")
    assert len({str(laid), str(bare), str(pixels(page, "#chunks canvas"))}) == 3
    page.get_by_label("lay the computed tokens over the frames").press("Space")
    page.locator("#play").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('frame-said').textContent !== '7'")
    assert page.locator("#play").inner_text() == "Pause"
    page.keyboard.press("Enter")
    assert page.locator("#play").inner_text() == "Play"


def on_a_phone(page: Page) -> None:
    """Nothing but tables, which scroll by themselves, is wider than a phone; colours follow the system's."""
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.scrollWidth <= 360")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
