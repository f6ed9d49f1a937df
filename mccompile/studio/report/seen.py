"""What is seen of each call while it runs: accounts, signals, bytes kept, motion weights. Costs a copy per call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mccompile.lowering.slots import Late
from mccompile.policy.planner import Plan
from mccompile.runtime.step import Step, Steps
from mccompile.studio.report.predictions import Predictions
from mccompile.studio.report.story import SeenCall, SeenChunk


@dataclass(slots=True)
class Watching:
    """Is told of every call of one run, and of every step of its scheduler (runtime/runner.py: `WatchesCalls`).

    thumbnails: whether the scheduler's predictions are kept. weights: by (row, branch) the first late signal of each
    token [chunks, tokens] uint8, 255 at its largest value of the call. seconds: that it took, predictions apart.
    """

    thumbnails: bool = True
    calls: list[SeenCall] = field(default_factory=list)
    weights: dict[tuple[int, str], NDArray[np.uint8]] = field(default_factory=dict)
    weighed: str = ""
    frames: int = 0  # latent frames of the video
    chunks: int = 0
    seconds: float = 0.0
    predictions: Predictions | None = None
    plans: dict[int, Plan] = field(default_factory=dict)  # of the latest run: by the first step that each is of

    @contextlib.contextmanager
    def during(self, pipe: object) -> Iterator[None]:
        """One run of the pipeline; what was seen of the run before it is forgotten."""
        self.calls, self.weights, self.seconds, self.frames = [], {}, 0.0, 0
        self.plans = {}
        self.predictions = Predictions(pipe) if self.thumbnails else None
        if self.predictions is None:
            yield
            return
        with self.predictions:
            yield

    def called(self, steps: Steps) -> None:
        """A call is over."""
        begun = time.perf_counter()
        first = next(iter(steps.values()))
        moment, layout = first.moment, first.layout
        self.frames, self.chunks = moment.total * layout.frames, moment.total
        self.plans[moment.first] = first.plan
        chunks = tuple(_chunk(steps, place) for place, t in enumerate(moment.chunks) if t.copy_of is None)
        self.calls.append(SeenCall(moment.row, moment.branch, first.store.memory.nbytes(), chunks))
        tensors = {slot: tensor for step in steps.values() for slot, tensor in step.course.states.tensors.items()}
        late = next((slot for slot in tensors if isinstance(slot, Late)), None)
        if late is not None:
            self.weighed = late.signal
            values = tensors[late][0].float().cpu().numpy().reshape(moment.total, -1)
            own = values[[t.chunk for t in moment.chunks]]
            top = float(np.nanmax(own, initial=0.0))
            if top > 0:
                self.weights[moment.row, moment.branch] = np.nan_to_num(255 * own / top).clip(0, 255).astype(np.uint8)
        self.seconds += time.perf_counter() - begun


def _chunk(steps: Steps, place: int) -> SeenChunk:
    """One chunk of a call: the accounts of all groups of regions. Nothing is predicted where their plans differ."""
    first = next(iter(steps.values()))
    time_of = first.moment.chunks[place]
    if first.actions[0][place].phase < 0:
        return SeenChunk(time_of.chunk, (), (), None)
    accounts: dict[str, float] = {}
    signals: dict[str, float] = {}
    for step in steps.values():
        _measured(step, place, accounts, signals)
    predicted = {step.plan.cells[time_of.step].action for step in steps.values()}
    return SeenChunk(
        time_of.chunk, _finite(accounts), _finite(signals), predicted.pop() if len(predicted) == 1 else None
    )


def _measured(step: Step, place: int, accounts: dict[str, float], signals: dict[str, float]) -> None:
    """Adds what one group of regions decided the chunk by; accounts of regions with a name stand under both names."""
    action, measured, decide = step.actions[0][place], step.course.states.measured, step.decides
    of = f"{step.group} " if step.group else ""
    if measured is not None and decide is not None and action.kind == "dynamic":
        for row, value in zip(decide.spec.measured, measured[0, : len(decide.spec.measured), place], strict=True):
            if row.what == "highest":
                accounts[of + (row.name or "account")] = float(value)
            elif row.what == "signal":
                signals[row.name] = float(value)
    elif action.account is not None:
        accounts[f"{of}account"] = float(action.account)


def _finite(found: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple((name, value) for name, value in found.items() if np.isfinite(value))
