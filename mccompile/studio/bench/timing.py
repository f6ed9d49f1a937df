"""Times of several ways that take turns, so that a busy moment of the machine hits them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def interleaved(
    ways: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm_up: int = 1
) -> dict[str, tuple[float, ...]]:
    """Seconds of each call of each way: `warm_up` untimed rounds, then `rounds` timed ones."""
    for _ in range(warm_up):
        for call in ways.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            seconds[name].append(timed(call, device))
    return {name: tuple(found) for name, found in seconds.items()}


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, the device's queue empty before and after."""
    _wait(device)
    begun = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - begun


def ratio(base: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster `other` is than `base`: the median of the ratios, round by round.

    Both were measured in the same rounds, so that what slowed a round down slowed both of its sides.
    """
    return statistics.median(b / o for b, o in zip(base, other, strict=True))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
