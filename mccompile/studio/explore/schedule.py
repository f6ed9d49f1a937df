"""The best static schedule of a budget: dynamic programming on a table of what each reuse costs.

The idea is that of DPCache (arXiv 2602.22654): which steps to compute is a shortest path, because what a step loses by
reuse depends on the last computed step alone. The table is measured once; every budget is then solved exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mccompile.ir import Chunks


@dataclass(frozen=True, slots=True)
class CostTable:
    """costs[i][k]: what step k loses when it reuses the result of step i < k; 0 elsewhere. Steps count from 0."""

    costs: tuple[tuple[float, ...], ...]

    @property
    def steps(self) -> int:
        """How many steps the run has."""
        return len(self.costs)

    def loss(self, computed: Sequence[int]) -> float:
        """What a schedule loses in all: each reused step against the last computed one before it."""
        return sum(self.costs[i][k] for i, j in pairwise((*computed, self.steps)) for k in range(i + 1, j))


def best_schedule(table: CostTable, budget: int) -> tuple[int, ...]:
    """The `budget` steps to compute that lose least; step 0 is one of them, because nothing is kept before it.

    Of equal ones the first in the order of their steps. Raises ValueError for a budget that no run has.
    """
    steps = table.steps
    if not 1 <= budget <= steps:
        raise ValueError(f"a run of {steps} steps computes 1 to {steps} of them, not {budget}")
    # best[i]: the least loss from computed step i on with so many computed steps left, and the next computed step.
    rests: list[list[tuple[float, int]]] = [[(_between(table, i, steps), steps) for i in range(steps)]]
    for left in range(1, budget):
        before = rests[-1]
        found = []
        for i in range(steps):
            nexts = [(_between(table, i, j) + before[j][0], j) for j in range(i + 1, steps - left + 1)]
            found.append(min(nexts, default=(math.inf, steps)))
        rests.append(found)
    schedule = [0]
    for left in range(budget - 1, 0, -1):
        schedule.append(rests[left][schedule[-1]][1])
    return tuple(schedule)


def _between(table: CostTable, computed: int, following: int) -> float:
    """What the steps between two computed ones lose."""
    return sum(table.costs[computed][k] for k in range(computed + 1, following))


def in_ranges(steps: Sequence[int]) -> str:
    """`0..4, 7, 9..11`, as a step mask lists its steps."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ", ".join(f"{first}" if first == last else f"{first}..{last}" for first, last in runs)


def mask_policy(name: str, computed: Sequence[int], steps: int, chunks: Chunks) -> str:
    """The schedule as a step-mask policy, which folds away entirely. chunks: the life of a chunk."""
    frames = "" if chunks.frames is None else f"frames: {chunks.frames}  "
    return (
        f"policy {name} {{\n"
        f"  phase all {{ compute steps {in_ranges(computed)} of {steps} }}\n"
        f"  layers blocks[*] {{ keep residual }}\n"
        f"  chunks {{ {frames}pending: {chunks.pending}  finished: {chunks.finished} }}\n"
        f"}}\n"
    )
