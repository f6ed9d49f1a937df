"""Times several functions that take turns, so that a busy moment of the machine affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

TimeKind = Literal["wall", "cpu"]


@dataclass(frozen=True, slots=True)
class CallTimer:
    """Seconds of one call, the device's queue empty before and after.

    kind: "wall", or "cpu" for the processor time of this process: on a CPU that others use too, the nearest thing to
    what a call takes on a quiet one (with one thread; with more it is the sum of theirs).
    """

    device: torch.device
    kind: TimeKind = "wall"

    def seconds(self, call: Callable[[], object]) -> float:
        now = time.perf_counter if self.kind == "wall" else time.process_time
        self._wait()
        begun = now()
        call()
        self._wait()
        return now() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def interleaved(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: CallTimer, warm_up: int = 1
) -> dict[str, tuple[float, ...]]:
    """Seconds of each call of each way: `warm_up` untimed rounds, then `rounds` timed ones."""
    for _ in range(warm_up):
        for call in ways.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            seconds[name].append(clock.seconds(call))
    return {name: tuple(found) for name, found in seconds.items()}


def ratio(base: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster `other` is than `base`: the median of the ratios, round by round.

    Both were measured in the same rounds, so that what slowed a round down slowed both of its sides.
    """
    return statistics.median(b / o for b, o in zip(base, other, strict=True))
