"""One run at a time: the others know their place, each can be cancelled, a lost process is started anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mccompile.diagnostics.failure import Failure
from mccompile.studio.serve.desk import MOST_KEPT, MOST_WAITING, Desk, PageRun
from mccompile.studio.serve.errors import AddressRefused, RequestRefused, ServeUnavailable, WorkerEnded
from mccompile.studio.serve.orders import Loaded, RunOutcome, RunProgress, RunStopped
from mccompile.studio.serve.process import WorkerProcess
from tests.house.tree import DOCS
from tests.serve.fakes import DONE, GIVEN, FakeWorker, order, work

Start = Callable[..., Desk]


@pytest.fixture
def start() -> Iterator[Start]:
    """Desks over fake processes, closed after the test."""
    desks: list[Desk] = []

    def started(obeys: bool = True, grace: float = 0.1) -> Desk:
        desks.append(Desk(lambda: FakeWorker(obeys), grace))  # type: ignore[arg-type, return-value]
        return desks[-1]

    yield started
    for desk in desks:
        desk.close()


def until(what: Callable[[], bool]) -> None:
    """Waits for another thread."""
    for _ in range(2000):
        if what():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come")


def give(desk: Desk, folder: Path, prompt: str) -> PageRun:
    return desk.submit(lambda n: order(folder / str(n), prompt))


def test_one_runs_and_the_others_wait_in_their_order(start: Start, tmp_path: Path) -> None:
    desk = start()
    first, second, third = (give(desk, tmp_path, prompt) for prompt in ("waits", "now", "now"))
    until(lambda: first.progress == RunProgress("motioncache", 3, 12))
    assert [desk.place(run) for run in (first, second, third)] == [0, 1, 2]
    desk.cancel(second.number)
    assert (second.state, desk.place(third)) == ("cancelled", 1)
    desk.cancel(first.number)
    until(lambda: third.over)
    assert [run.state for run in desk.runs()] == ["cancelled", "cancelled", "done"]
    assert third.outcome == DONE


def test_a_run_that_does_not_stop_is_killed(start: Start, tmp_path: Path) -> None:
    before = FakeWorker.started
    desk = start(obeys=False)
    run = give(desk, tmp_path, "waits")
    until(lambda: run.state == "running")
    desk.cancel(run.number)
    until(lambda: run.over)
    assert run.state == "cancelled"
    again = give(desk, tmp_path, "now")
    until(lambda: again.over)
    assert (again.state, FakeWorker.started - before) == ("done", 2)


def test_a_lost_process_costs_one_run(start: Start, tmp_path: Path) -> None:
    desk = start()
    lost, refused, done = (give(desk, tmp_path, prompt) for prompt in ("dies", "refused", "now"))
    until(lambda: done.over)
    assert [run.state for run in (lost, refused, done)] == ["failed", "failed", "done"]
    assert [run.failed[0].code for run in (lost, refused)] == ["MC0764", "MC0763"]


def test_the_queue_and_what_is_kept_are_bounded(start: Start, tmp_path: Path) -> None:
    desk = start()
    first = give(desk, tmp_path, "waits")
    until(lambda: first.state == "running")
    for _ in range(MOST_WAITING):
        give(desk, tmp_path, "now")
    with pytest.raises(RequestRefused, match="are waiting already") as refused:
        give(desk, tmp_path, "now")
    assert refused.value.status == 429
    desk.cancel(first.number)
    for _ in range(MOST_KEPT):
        until(lambda: all(run.over for run in desk.runs()))
        give(desk, tmp_path, "now")
    until(lambda: all(run.over for run in desk.runs()) and len(desk.runs()) == MOST_KEPT)
    with pytest.raises(RequestRefused, match="there is no run 1"):
        desk.cancel(first.number)
    assert len(list(tmp_path.glob("*/results"))) == MOST_KEPT


def test_a_process_answers_stops_and_ends(tmp_path: Path) -> None:
    """A real one, without a model."""
    worker = WorkerProcess(work, GIVEN)
    try:
        assert isinstance(worker.loaded(), Loaded)
        worker.give(order(tmp_path, "waits"))
        assert worker.answer(20) == RunProgress("motioncache", 3, 12)
        assert worker.answer(0) is None
        worker.stop()
        assert worker.answer(20) == RunStopped()
        worker.give(order(tmp_path, "now"))
        assert isinstance(worker.answer(20), RunOutcome)
        worker.give(order(tmp_path, "dies"))
        with pytest.raises(WorkerEnded, match="exit status 3"):
            worker.answer(20)
    finally:
        worker.close()


def test_a_model_that_cannot_be_loaded_ends_the_start(tmp_path: Path) -> None:
    class Refusing(FakeWorker):
        def loaded(self) -> Loaded:
            raise Failure(WorkerEnded(1).diagnostics)

    made: list[FakeWorker] = []

    def start() -> WorkerProcess:
        made.append(Refusing())
        return made[-1]  # type: ignore[return-value]

    with pytest.raises(Failure, match="MC0764"):
        Desk(start)
    assert made[0].closed


@pytest.mark.parametrize(
    "error",
    [
        ServeUnavailable("No module named 'starlette'"),
        AddressRefused("127.0.0.1, port 8765", "address already in use"),
        RequestRefused(403, "it comes from a page of another site", "open the page itself"),
        WorkerEnded(-9),
    ],
    ids=lambda error: error.code,
)
def test_the_pages_show_the_errors_as_they_are_printed(error: Failure) -> None:
    page = (DOCS / "errors" / f"{error.diagnostics[0].code}.md").read_text()
    assert f"```text\n{error}\n```" in page
