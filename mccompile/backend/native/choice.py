"""Which attention runs for which shape on this machine: torch's or the project's own kernel, by measurement.

The two are timed once per width of heads and number of threads, over classes of shapes. A class is decided at its least
favourable point for the kernel: one query more than fills its vectors. The kernel must be faster there by `MARGIN`.
Where the two are near each other, they are timed for longer. Queries that are too few to fill one vector are torch's.
The table is kept beside the packages, under the facts that it depends on, so that every process decides alike.
"""

from __future__ import annotations

import functools
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mccompile.backend.measured import cpu_facts, measured_once
from mccompile.backend.native.kernel import SOURCE, attend_natively, kernel
from mccompile.lowering.attention import attend

QUERIES = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)  # fewest of each class; a vector holds 8 or 16
KEYS = (0, 96, 256, 1024, 4096, 16384)  # fewest of each class
MEASURED_AT = (64, 128, 512, 2048, 8192, 32768)  # keys of each class
LARGEST = 2**26  # queries times keys: beyond, time grows with the queries, and a class is as the one with fewer
MARGIN, ROUNDS = 1.03, 5
HEADS_APART = 4  # heads that lie in one row of a model's keys, at least: how far apart the rows of one head are
LEAST = 0.02  # seconds that both are timed for at each point: short calls need more rounds
NEAR, LONGER = 1.15, 0.2  # the ratio up to which two are near each other, and the seconds that both are timed for then


@dataclass(frozen=True, slots=True)
class TimingTable:
    """For heads of one width, by class of queries, then of keys: seconds of torch's attention and of the kernel."""

    width: int
    threads: int
    torch_seconds: tuple[tuple[float, ...], ...]
    own_seconds: tuple[tuple[float, ...], ...]

    def own_is_faster(self, queries: int, keys: int) -> bool:
        """Whether the kernel runs for so many queries that see so many keys."""
        if queries < QUERIES[0]:
            return False
        row, column = bisect_right(QUERIES, queries) - 1, bisect_right(KEYS, keys) - 1
        return self.own_seconds[row][column] * MARGIN < self.torch_seconds[row][column]

    @property
    def whole(self) -> bool:
        """Whether it has a time, above zero, for every class."""
        return all(
            len(rows) == len(QUERIES) and all(len(r) == len(KEYS) and all(0 < s < math.inf for s in r) for r in rows)
            for rows in (self.torch_seconds, self.own_seconds)
        )


@functools.cache
def table_for(width: int, threads: int) -> TimingTable | None:
    """The table of this machine, measured now where it is not yet known; None where there is no kernel."""
    if kernel() is None:
        return None
    return measured_once(
        TimingTable, "attention", _facts(width, threads), lambda: measure(width, threads),
        lambda found: found.whole and (found.width, found.threads) == (width, threads),
    )  # fmt: skip


def measure(width: int, threads: int) -> TimingTable:
    """Times both on every class, one head per thread."""
    times: list[list[tuple[float, float]]] = []
    for queries in (fewest + 1 for fewest in QUERIES):  # fills the kernel's vectors least
        row: list[tuple[float, float]] = []
        for column, keys in enumerate(MEASURED_AT):
            known = times[-1][column] if queries * keys > LARGEST else None
            row.append(known or seconds(queries, keys, width, threads))
        times.append(row)
    theirs, ours = (tuple(tuple(pair[i] for pair in row) for row in times) for i in (0, 1))
    return TimingTable(width, threads, theirs, ours)


def seconds(queries: int, keys: int, width: int, heads: int, rounds: int = ROUNDS) -> tuple[float, float]:
    """The least time of torch's attention and of the kernel, which take turns: what else runs slows both."""
    q, k, v, bounds = _operands(queries, keys, width, heads, torch.float32)
    out = torch.empty_like(q)
    ways = (lambda: attend(q, k, v, bounds), lambda: attend_natively(q, k, v, bounds, None, out))
    theirs, ours = _least(ways, rounds)
    return theirs, ours


def seconds_of_torch(queries: int, keys: int, width: int, heads: int, dtype: torch.dtype, rounds: int) -> float:
    """The least time of torch's attention in a dtype that the kernel does not have."""
    operands = _operands(queries, keys, width, heads, dtype)
    (found,) = _least((lambda: attend(*operands),), rounds)
    return found


def _operands(queries: int, keys: int, width: int, heads: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """q, k and v [1, heads, n, width] as a model makes them, with other heads between, and the bounds of one group."""
    generator = torch.Generator().manual_seed(0)
    apart = max(heads, HEADS_APART)
    laid = (torch.randn(1, n, apart, width, generator=generator).to(dtype) for n in (queries, keys, keys))
    return *(x[:, :, :heads].transpose(1, 2) for x in laid), torch.tensor([[0, queries, keys]])


def _least(ways: Sequence[Callable[[], object]], rounds: int) -> tuple[float, ...]:
    """The least time of each, over so many rounds at least."""
    for way in ways:
        way()
    found, spent, count = [math.inf] * len(ways), 0.0, 0
    while count < rounds or spent < (LONGER if _near(found) else LEAST):
        times = [_time(way) for way in ways]
        found = [*map(min, found, times)]
        spent, count = spent + sum(times), count + 1
    return tuple(found)


def _near(times: Sequence[float]) -> bool:
    return len(times) > 1 and max(times) < NEAR * min(times)


def _time(way: Callable[[], object]) -> float:
    begun = time.perf_counter()
    way()
    return time.perf_counter() - begun


def _facts(width: int, threads: int) -> tuple[object, ...]:
    classes = QUERIES, KEYS, MEASURED_AT, LARGEST
    return (*cpu_facts(), width, threads, SOURCE.read_bytes(), *classes, MARGIN, HEADS_APART, NEAR, LONGER)
