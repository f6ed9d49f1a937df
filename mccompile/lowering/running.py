"""Running means in the decision graph: of the last steps, or smoothed, and how what they keep follows the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mccompile import ir
from mccompile.lowering.expressions import EarlierNumber, Leaves, evaluate
from mccompile.lowering.operations import apply
from mccompile.lowering.pasts import Get
from mccompile.lowering.slots import Running, Slot


@dataclass(frozen=True, slots=True)
class ChunkStep:
    """What the clock says of chunks, each [B, G, 1, 1].

    step: the chunk's own, from 0. active: it runs. fresh: nothing was kept of it before this step.
    """

    step: torch.Tensor
    active: torch.Tensor
    fresh: torch.Tensor


@dataclass(frozen=True, slots=True)
class RunningMeans:
    """The running means that rules read. slots: what is kept of them between steps."""

    means: tuple[ir.Average | ir.Smooth, ...]
    slots: tuple[Running, ...]

    @classmethod
    def of(cls, found: Sequence[ir.Expr]) -> RunningMeans:
        """Those among expressions."""
        means = tuple(e for e in found if isinstance(e, ir.Average | ir.Smooth))
        slots: list[Running] = []
        for number, mean in enumerate(means):
            slots += [Running(number, back) for back in (range(1, mean.n) if isinstance(mean, ir.Average) else (0,))]
        return cls(means, tuple(slots))

    def run(
        self, leaves: Leaves, get: Get, told: ChunkStep, zero: torch.Tensor
    ) -> tuple[dict[EarlierNumber, torch.Tensor], dict[Slot, torch.Tensor]]:
        """Returns the means at this step, and what is kept after it. zero: 0 for every cell, [B, G, F, P]."""
        found: dict[EarlierNumber, torch.Tensor] = {}
        kept: dict[Slot, torch.Tensor] = {}
        for number, mean in enumerate(self.means):
            now = evaluate(mean.of, leaves) + zero
            old = {s: torch.where(told.fresh, now, get(s)) for s in self.slots if s.number == number}
            match mean:
                case ir.Average(_, n):
                    found[mean] = _mean(now, [old[Running(number, back)] for back in range(1, n)], told.step)
                    newer = {Running(number, back): old[Running(number, back - 1)] for back in range(2, n)}
                    newer[Running(number, 1)] = now
                case ir.Smooth(_, by):
                    found[mean] = _smoothed(now, old[Running(number, 0)], evaluate(by, leaves), told.fresh)
                    newer = {Running(number, 0): found[mean]}
            kept |= {slot: torch.where(told.active, value, get(slot)) for slot, value in newer.items()}
        return found, kept


def _mean(now: torch.Tensor, earlier: Sequence[torch.Tensor], step: torch.Tensor) -> torch.Tensor:
    """The mean of this step's value and of the earlier finite ones that there are, the latest first."""
    total, count = now, now * 0.0 + 1.0
    for back, value in enumerate(earlier, 1):
        there = (step >= float(back)) & torch.isfinite(value)
        total = torch.where(there, total + value, total)
        count = torch.where(there, count + 1.0, count)
    return total / count


def _smoothed(now: torch.Tensor, before: torch.Tensor, by: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """This step's value where nothing finite lies before it."""
    rest = apply("sub", [1.0, by])
    found = apply("add", [apply("mul", [by, before]), apply("mul", [rest, now])])
    return torch.where(fresh | ~torch.isfinite(before), now, found)
