"""Both guidance branches in one forward: the branch that follows is run with the one that decides, before it is called.

A pipeline calls the transformer twice per step, on the same latents and with different prompts. Under
`share decision of cond  batch`, the call of `cond` (the leader) runs both branches on one list of rows. The half of the
other branch (the follower) is returned at its own call, if that call is the predicted one. Four things must hold:

1. Keys, values and residuals of both branches lie in one memory, the leader's samples first. Each branch's own store
   holds its half as views, so a branch that runs alone reads and writes the same memory.
2. Everything else in a store (the history of chunks, states of decisions, the plan) belongs to one branch. A run of
   both advances only the leader's. The follower's advances at its own call, as if it ran then.
3. Rows of the follower that a run of both overwrites are saved first. The follower's call claims a predicted half.
   Otherwise the half is undone, and the saved rows are put back, before any other call of the request.
4. Both run on the same rows. The follower never needs a row that the leader does not compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from mccompile import ir
from mccompile.capture.own import Mark, mark_of
from mccompile.lowering.types import LoweredRegion
from mccompile.runtime.blocks import Env
from mccompile.runtime.clock import Moment
from mccompile.runtime.engine import Engine
from mccompile.runtime.forecast import Weights
from mccompile.runtime.joint import Joint, Taken
from mccompile.runtime.rows import Rows
from mccompile.runtime.shared import Value
from mccompile.runtime.step import Step, Steps, run
from mccompile.runtime.store import BranchStore, Memory
from mccompile.runtime.window import window_of


class Calls(Protocol):
    """What a runner offers: to begin a call, and to end it when its streams are there."""

    engine: Engine

    def store_of(self, moment: Moment) -> BranchStore | None: ...
    def begin(self, inputs: Mapping[str, Value], moment: Moment) -> Steps: ...
    def finish(self, steps: Steps, env: Env, masks: Mapping[str, np.ndarray]) -> tuple[Value, ...]: ...


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A call that is expected next, and what marks its tensors as unchanged."""

    moment: Moment
    inputs: Mapping[str, Value]
    marks: Mapping[str, Mark]

    @classmethod
    def of(cls, moment: Moment, inputs: Mapping[str, Value]) -> Foreseen | None:
        """None where tensors count no versions (inference mode): a change in place would go unseen."""
        tensors = {n: v for n, v in inputs.items() if isinstance(v, torch.Tensor)}
        if any(t.is_inference() for t in tensors.values()):
            return None
        return cls(moment, inputs, {n: mark_of(t) for n, t in tensors.items()})

    def is_it(self, inputs: Mapping[str, Value], moment: Moment) -> bool:
        """Whether a call is the one that was expected: the very same tensors, unmodified, or equal ones."""
        return moment == self.moment and all(self._same(n, v) for n, v in inputs.items())

    def _same(self, name: str, value: Value) -> bool:
        expected = self.inputs[name]
        if not isinstance(expected, torch.Tensor) or not isinstance(value, torch.Tensor):
            return value == expected
        if mark_of(expected) != self.marks[name]:
            return False
        return value is expected or (value.shape == expected.shape and torch.equal(value, expected))


@dataclass(frozen=True, slots=True)
class Pending:
    """The follower's half of a run of both: its step, its streams, its rows; `taken` gives back what they replaced."""

    call: Foreseen
    step: Step
    env: Env
    mask: np.ndarray
    taken: Taken


@dataclass(slots=True)
class Foresight:
    """What one request knows of its branches. last: the latest call of each.

    trusted: the latest expectation was right, or there was none. expected: a call that is expected but was not run.
    """

    last: dict[str, tuple[Mapping[str, Value], Moment]] = field(default_factory=dict)
    pending: Pending | None = None
    expected: Foreseen | None = None
    trusted: bool = True
    joint: Joint | None = None

    def foresee(self, inputs: Mapping[str, Value], moment: Moment) -> Foreseen | None:
        """The follower's call, at the leader's: what both were given alike is alike again, the rest as it was.

        None where not exactly one other branch took part in the row before.
        """
        own = self.last.get(moment.branch)
        others = [s for b, s in self.last.items() if b != moment.branch and s[1].row == moment.row - 1]
        if own is None or own[1].row != moment.row - 1 or len(others) != 1:
            return None
        ((before, then),) = others
        alike = {n for n in inputs if before[n] is own[0][n]}
        expected = {n: v if n in alike else before[n] for n, v in inputs.items()}
        return Foreseen.of(replace(moment, branch=then.branch), expected)


class Pairing:
    """Runs the calls of a runner, both guidance branches together where the second can be foreseen."""

    def __init__(self, calls: Calls, leader: str) -> None:
        self._calls = calls
        self._leader = leader

    def call(self, known: Foresight, inputs: Mapping[str, Value], moment: Moment) -> tuple[Value, ...]:
        """The model's flat outputs for one call of the request that `known` belongs to."""
        pending, known.pending = known.pending, None
        expected, known.expected = known.expected, None
        foreseen = None
        if moment.branch == self._leader:
            foreseen = known.foresee(inputs, moment)
        elif expected is not None:
            known.trusted = expected.is_it(inputs, moment)
        if pending is not None:
            if pending.call.is_it(inputs, moment):
                known.last[moment.branch] = (inputs, moment)
                return self._claim(pending)
            pending.taken.back()
            known.trusted = False
        known.last[moment.branch] = (inputs, moment)
        if foreseen is not None and known.trusted:
            return self._both(known, inputs, moment, foreseen)
        known.expected = foreseen
        return self._alone(self._begin(inputs, moment))

    def _begin(self, inputs: Mapping[str, Value], moment: Moment) -> Step:
        """The step of a call, whose regions all decide together (lowering refuses `batch` where they do not)."""
        (step,) = self._calls.begin(inputs, moment).values()
        return step

    def _alone(self, step: Step) -> tuple[Value, ...]:
        steps = {step.group: step}
        return self._calls.finish(steps, *run(steps))

    def _both(
        self, known: Foresight, inputs: Mapping[str, Value], moment: Moment, foreseen: Foreseen
    ) -> tuple[Value, ...]:
        first = self._begin(inputs, moment)
        second = self._follower(first, foreseen)
        if second is None:
            return self._alone(first)
        if known.joint is None or known.joint.batch != first.layout.batch:
            known.joint = Joint(first.layout.batch)
        streams = known.joint.combine(first, second)
        if streams is None:
            return self._alone(first)
        step = BothStep(
            first.engine, first.bound, first.fold, moment, replace(first.layout, batch=2 * first.layout.batch),
            first.store, first.plan, first.actions + second.actions, None, inputs, *streams, first.group, first.view,
            first, second, known.joint,
        )  # fmt: skip
        env, masks = run({step.group: step})
        mask = masks[step.group]
        own, other = known.joint.halves(env)
        known.joint.publish(first.store, 0)
        known.pending = Pending(foreseen, second, other, mask[first.layout.batch :], known.joint.taken())
        return self._calls.finish({first.group: first}, own, {first.group: mask[: first.layout.batch]})

    def _follower(self, first: Step, foreseen: Foreseen) -> Step | None:
        """The follower's call, begun; None where it may run on other rows than the leader, or lies elsewhere."""
        store = self._calls.store_of(foreseen.moment)
        if store is None or store.window != window_of(foreseen.moment, first.layout, foreseen.inputs):
            return None
        second = self._begin(foreseen.inputs, foreseen.moment)  # its window stays: nothing of its store changes
        copies = store.course.history.copies == first.course.history.copies
        if second.layout != first.layout or not copies or not _agree(first, second):
            return None
        return replace(second, leader=first.course)

    def _claim(self, pending: Pending) -> tuple[Value, ...]:
        step = pending.step
        pending.taken.keep(step.store)
        if any(r.keep is not None for r in step.engine.lowered.regions):
            step.decide(pending.env)  # what it follows is known: it notes the selection
        return self._calls.finish({step.group: step}, pending.env, {step.group: pending.mask})


def _agree(first: Step, second: Step) -> bool:
    """The follower skips what the leader skips, and computes of its own accord at most what the leader does."""
    for ours, theirs in zip(first.actions, second.actions, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if (a.kind == "skip") != (b.kind == "skip") or (b.kind == "compute" and a.kind != "compute"):
                return False
    return True


@dataclass(frozen=True, slots=True)
class BothStep(Step):
    """A step of both branches as one batch; `first` is the leader's own, which decides for both."""

    first: Step
    second: Step
    joint: Joint

    @property
    def memory(self) -> Memory:
        """That of both."""
        return self.joint.memory

    def decide(self, env: Env) -> np.ndarray:
        """The leader's mask, for the samples of both."""
        mask = self.first.decide(self.joint.halves(env)[0])
        return np.concatenate([mask, mask])

    def compared(self, source: ir.SourceName, env: Env) -> torch.Tensor:
        """That of the leader's samples, then that of the follower's."""
        halves = zip((self.first, self.second), self.joint.halves(env), strict=True)
        return torch.cat([step.compared(source, half) for step, half in halves])

    def merge(
        self, number: int, region: LoweredRegion, env: Env, chosen: tuple[Rows, ...], weights: Weights | None
    ) -> Env:
        """Saves the follower's rows before they are replaced."""
        for rows in chosen:
            self.joint.save(self.engine.lowered.captured, number, region, rows)
        return Step.merge(self, number, region, env, chosen, weights)
