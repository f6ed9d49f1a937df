"""Decisions made one call ahead are those made in time, and are dropped where the schedule turns out otherwise."""

from __future__ import annotations

from dataclasses import replace

import torch

from mccompile.policy.groups import ALL
from mccompile.runtime.clock import Moment
from mccompile.runtime.compiled import CompiledModel
from tests.runtime.conftest import Tiny
from tests.runtime.test_laws import MOTION, compiled


def counted(model: CompiledModel) -> list[int]:
    """Grows by one at each run of the decision graph."""
    decide, runs = model.runner.engine.decides[ALL], list[int]()
    assert decide is not None
    call = decide._call
    decide._call = lambda *arguments: runs.append(0) or call(*arguments)  # type: ignore[func-returns-value]
    return runs


def test_the_same_run_with_as_many_decisions(tiny: Tiny) -> None:
    """Not more graphs are run than without, but for the last foreseen ones: each foreseen decision was taken over."""
    found = []
    for foresees in (False, True):
        model = compiled(tiny, MOTION)
        model.runner.foresees = foresees
        runs = counted(model)
        found.append((tiny.run(), [replace(e, request="") for e in model.events], len(runs)))
        tiny.pipe.transformer = model.undo()
    (plain, events, few), (ahead, same, more) = found
    assert torch.equal(plain, ahead)
    assert events == same
    assert any(0 < e.computed < e.tokens for e in events)
    assert few <= more <= few + 2


def test_a_schedule_that_turns_out_otherwise(tiny: Tiny) -> None:
    """Foretold nonsense changes nothing."""
    wanted, found = [], []
    for out, wrong in ((wanted, False), (found, True)):
        model = compiled(tiny, MOTION)
        model.runner.foresees = wrong
        clock = model.clock
        assert clock is not None
        if wrong:
            model.clock = _Liar(clock.moment)
        out.append(tiny.run())
        tiny.pipe.transformer = model.undo()
    assert torch.equal(wanted[0], found[0])


class _Liar:
    """Says that the next row is this one again."""

    def __init__(self, moment) -> None:  # type: ignore[no-untyped-def]
        self._moment = moment

    def moment(self, branch: str, inputs: dict[str, object], place: int | None = None) -> Moment:
        told: Moment = self._moment(branch, inputs, place)
        return replace(told, following=told.chunks)
