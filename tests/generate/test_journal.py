"""A run that is stopped anywhere goes on to the identical video, from files that are whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mccompile import api
from mccompile.bundles.identity import environment, identify
from mccompile.diagnostics.source import Source
from mccompile.generate import journal
from mccompile.generate.compare import run_with
from mccompile.generate.errors import NothingToResume, RunDiffers
from mccompile.generate.journal import BEGUN, FOLDER, FORMAT, Begun, Journal, read_begun
from mccompile.generate.places import Write, put
from mccompile.language.load import load_policy
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.trace import Event
from tests.generate.conftest import Small

Outcome = tuple[np.ndarray, list[Event], list[np.ndarray]]
POLICIES = {
    "top_motion": {"warmup": 1.0},
    "teacache": {"threshold": 0.3},
    "flowcache": {},
    "taylorseer": {"warmup": 2.0, "interval": 2.0},
    "foca": {"warmup": 2.0, "interval": 3.0},
}


class Killed(BaseException):
    """The process is gone."""


def model_of(small: Small, policy: str) -> CompiledModel:
    values = POLICIES[policy]
    model = api.compile(small.pipe, policy, backend="eager", captured=small.captured, **values)
    model.undo()
    model.runner.masks = []
    return model


def begun_of(model: CompiledModel) -> Begun:
    return Begun(FORMAT, ("generate",), "/here", environment("cpu"), (identify(model.model),), "ir", (("a", 1.0),), 1)


def run(small: Small, model: CompiledModel) -> Outcome:
    video = run_with(small.pipe, model, small.call, 0, lambda done, total: None).video
    assert model.runner.masks is not None
    events = [replace(event, request="") for event in model.events]
    return video, events, list(model.runner.masks)


@pytest.fixture(scope="module")
def whole(small: Small) -> Callable[[str], Outcome]:
    known: dict[str, Outcome] = {}

    def of(policy: str) -> Outcome:
        if policy not in known:
            known[policy] = run(small, model_of(small, policy))
        return known[policy]

    return of


def killed_at(write: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies at its n-th write: with the draft half written and nothing put at its place."""
    count = 0

    def dying(path: Path, writer: Write) -> None:
        nonlocal count
        count += 1
        if count > write:
            (path.parent / f".{path.stem}-1-1{path.suffix}").write_bytes(b"half")
            raise Killed
        put(path, writer)

    monkeypatch.setattr(journal, "put", dying)


def same(one: Outcome, other: Outcome) -> None:
    assert np.array_equal(one[0], other[0])
    assert one[1] == other[1]
    assert len(one[2]) == len(other[2])
    assert all(np.array_equal(a, b) for a, b in zip(one[2], other[2], strict=True))


@pytest.mark.parametrize(
    ("policy", "write"),
    [("top_motion", 1), ("top_motion", 9), ("teacache", 8), ("flowcache", 11), ("taylorseer", 11), ("foca", 11)],
)
def test_a_stopped_run_goes_on_to_the_same_video(
    policy: str, write: int, small: Small, whole: Callable[[str], Outcome], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(journal, "SHARE", 1e9)  # a state before every row: there is no time for it to be spared
    model = model_of(small, policy)
    model.journal = Journal(tmp_path, begun_of(model))
    with monkeypatch.context() as until:
        killed_at(write, until)
        with pytest.raises(Killed):
            run(small, model)
    again = model_of(small, policy)
    again.journal = kept = Journal(tmp_path, begun_of(again), resume=True)
    assert kept.known == 2 * (write // 3)  # a state and two calls are written for each row, and no state for the first
    same(run(small, again), whole(policy))
    assert not kept.stopped
    assert ("partial" in {event.action for event in again.events}) == (policy == "top_motion")
    kept.end()
    assert not list(tmp_path.iterdir())


PICKING = """policy picking extends top_motion {
  cache { window: 1 chunks  keys: top 1 chunks by attention(key) }
}
"""


def test_picked_keys_go_on(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that compute some tokens of a chunk read the pick of an earlier call, which another process has made."""
    longer = replace(small, call={**small.call, "num_frames": 31})

    def model() -> CompiledModel:
        policy = load_policy(Source("picking.policy", PICKING))
        made = api.compile(small.pipe, policy, backend="eager", captured=small.captured, warmup=1.0)
        made.undo()
        made.runner.masks = []
        return made

    whole = run(longer, model())
    assert "partial" in {event.action for event in whole[1]}
    monkeypatch.setattr(journal, "SHARE", 1e9)
    stopped = model()
    stopped.journal = Journal(tmp_path, begun_of(stopped))
    with monkeypatch.context() as until:
        killed_at(20, until)
        with pytest.raises(Killed):
            run(longer, stopped)
    again = model()
    again.journal = kept = Journal(tmp_path, begun_of(again), resume=True)
    assert kept.known == 12
    same(run(longer, again), whole)


def test_what_cannot_go_on(small: Small, tmp_path: Path) -> None:
    with pytest.raises(NothingToResume, match="no run was stopped there"):
        read_begun(tmp_path)
    model = model_of(small, "teacache")
    begun = begun_of(model)
    Journal(tmp_path, begun)
    with pytest.raises(RunDiffers, match="torch has 2 threads, and had 1"):
        Journal(tmp_path, replace(begun, threads=2), resume=True)
    with pytest.raises(RunDiffers, match="the policy is another"):
        Journal(tmp_path, replace(begun, policy="other"), resume=True)
    for text in ("{", "[]", "{}", '{"format": 9}', "[" * 99_999, f'{{"format": {FORMAT}, "words": 3}}'):
        (tmp_path / FOLDER / BEGUN).write_text(text)
        with pytest.raises(NothingToResume):
            read_begun(tmp_path)


def test_a_full_disk_stops_the_journal_and_not_the_run(
    small: Small, whole: Callable[[str], Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once, when it happens: the user may make room, and knows that the run cannot go on from here."""
    model, told = model_of(small, "teacache"), list[str]()
    model.journal = kept = Journal(tmp_path, begun_of(model), said=told.append)

    def full(path: Path, writer: Write) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "put", full)
    same(run(small, model), whole("teacache"))
    assert kept.stopped == "no space left on device"
    (line,) = told
    assert line.endswith("call-000000.safetensors: no space left on device; the run goes on and is not kept any more")
