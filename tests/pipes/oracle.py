"""Which step a call of the transformer is, told by the scheduler's steps: what the clock says must agree with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from mccompile.pipelines.steps import StepClock
from mccompile.runtime.compiled import CompiledModel


@dataclass(slots=True)
class _Run:
    """What happened under one list of timesteps. calls: the row of each, and how many steps were taken before it."""

    calls: list[tuple[int, int]] = field(default_factory=list)
    taken: int = 0
    scheduled: int = 0

    def wrong(self) -> str:
        """The first call whose row is not that of its step. A run begins in the middle and ends its schedule, or it
        begins the schedule and leaves out its end.

        Calls without a step of the scheduler between them are of one step. Some pipelines step the scheduler twice.
        """
        order = list(dict.fromkeys(before for _, before in self.calls))
        skipped = self.scheduled - self.taken
        rows = {n: n + skipped if skipped >= 0 else self.scheduled - len(order) + i for i, n in enumerate(order)}
        bad = [(row, rows[before]) for row, before in self.calls if self.taken and row != rows[before]]
        if not bad or (skipped > 0 and all(row == before for row, before in self.calls)):
            return ""
        return f"row {bad[0][0]} at step {bad[0][1]} of {self.scheduled}"


class Steps:
    """Counts the scheduler's steps between the calls of a compiled transformer, until `found` is asked for."""

    def __init__(self, pipe: object, compiled: CompiledModel) -> None:
        self._clock, self._compiled = compiled.clock, compiled
        self._scheduler = pipe.scheduler  # type: ignore[attr-defined]
        self._runs, self._sources = [_Run()], set[str]()
        kind = type(self._scheduler)
        self._own = kind.step, kind.set_timesteps
        kind.step, kind.set_timesteps = (
            self._watched(kind.step, self._stepped),
            self._watched(kind.set_timesteps, self._set),
        )
        compiled.register_forward_hook(self._called)

    def _watched(self, method: Callable[..., object], then: Callable[[], None]) -> Callable[..., object]:
        """The method of every scheduler of this class; a copy of the pipeline's own is another one."""

        @functools.wraps(method)
        def call(scheduler: object, *args: object, **kwargs: object) -> object:
            result = method(scheduler, *args, **kwargs)
            if scheduler is self._scheduler:
                then()
            return result

        return call

    def _stepped(self) -> None:
        self._runs[-1].taken += 1

    def _set(self) -> None:
        self._runs.append(_Run(scheduled=len(self._scheduler.timesteps)))

    def _called(self, *_: object) -> None:
        self._runs[-1].calls.append((self._compiled.events[-1].row, self._runs[-1].taken))
        if isinstance(self._clock, StepClock):
            self._sources.add(self._clock.source)

    def found(self) -> str:
        """The clock's source, if every call was the step that the scheduler was about to take."""
        type(self._scheduler).step, type(self._scheduler).set_timesteps = self._own
        if not isinstance(self._clock, StepClock):
            return type(self._clock).__name__
        wrong = next((run.wrong() for run in self._runs if run.wrong()), "")
        return f"WRONG: {wrong}" if wrong else ", ".join(sorted(self._sources)) or "never asked"
