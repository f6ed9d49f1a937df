"""Numbers of earlier steps in the decision graph: what `kept(x)` and `before(x)` read, and how it follows the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mccompile import ir
from mccompile.language.walk import cell_of, walk_rule
from mccompile.lowering.expressions import EarlierNumber
from mccompile.lowering.slots import Past, Slot

Get = Callable[[Slot], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Pasts:
    """The earlier numbers that rules read.

    numbers: the expressions, of which `read` finds earlier values. slots: what is kept of them, for each cell all that
    lies between the step now and the oldest value.
    """

    numbers: tuple[ir.Expr, ...]
    slots: tuple[Past, ...]

    @classmethod
    def of(cls, rules: tuple[tuple[int, ir.Rule], ...], signals: Mapping[str, ir.Signal]) -> Pasts:
        """All that the rules look back at."""
        deepest: dict[tuple[ir.Expr, ir.Granularity], int] = {}
        for _, rule in rules:
            for expr in walk_rule(rule, signals):
                match expr:
                    case ir.Kept(of, n):
                        cell = max(cell_of(rule), ir.Granularity.CHUNK)
                        deepest[of, cell] = max(n, deepest.get((of, cell), n))
                    case ir.Before(of):
                        deepest[of, ir.Granularity.STEP] = 0
                    case _:
                        continue
        numbers = tuple(dict.fromkeys(of for of, _ in deepest))
        slots: list[Past] = []
        for (of, cell), n in deepest.items():
            slots += [Past(numbers.index(of), back, cell) for back in (range(1, n + 1) if n else (0,))]
        return cls(numbers, tuple(slots))

    def read(
        self, cell: ir.Granularity, numbers: Mapping[ir.Expr, torch.Tensor], get: Get
    ) -> dict[EarlierNumber, torch.Tensor]:
        """The earlier values under a rule that decides by `cell`. numbers: the values now."""
        found: dict[EarlierNumber, torch.Tensor] = {}
        for slot in self.slots:
            of = self.numbers[slot.number]
            if slot.back == 0:
                found[ir.Before(of)] = get(slot)
            elif slot.cell == max(cell, ir.Granularity.CHUNK):
                found[ir.Kept(of, slot.back)] = get(slot)
        return found

    def after(
        self, numbers: Mapping[ir.Expr, torch.Tensor], get: Get, active: torch.Tensor, compute: torch.Tensor,
        fresh: torch.Tensor | None,
    ) -> dict[Slot, torch.Tensor]:
        """What is kept after this step. fresh: chunks [B, G, 1, 1] of which nothing was kept before it."""  # fmt: skip
        made: dict[Slot, torch.Tensor] = {}
        for slot in self.slots:
            now = numbers[self.numbers[slot.number]]
            newer = now if slot.back <= 1 else get(Past(slot.number, slot.back - 1, slot.cell))
            moves = active if slot.back == 0 else _computed(compute, slot.cell)
            kept = torch.where(moves, newer, get(slot))
            assert fresh is not None
            made[slot] = torch.where(active & fresh, now, kept)
        return made


def _computed(compute: torch.Tensor, cell: ir.Granularity) -> torch.Tensor:
    """Whether something of the cell of each token was computed, in a shape that fits [B, G, F, P]."""
    match cell:
        case ir.Granularity.TOKEN:
            return compute
        case ir.Granularity.FRAME:
            return compute.any(-1, True)
        case _:
            return compute.any(-1, True).any(-2, True)
