"""Sources at earlier moments in the decision graph: what distances compare, and how what is kept follows the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mccompile import ir
from mccompile.lowering.expressions import Leaves, change
from mccompile.lowering.filters import filtered
from mccompile.lowering.pasts import Get
from mccompile.lowering.slots import Places, SourceBefore


def moments_of(of: ir.Change) -> tuple[ir.PastMoment, ...]:
    """Returns the earlier moments that a distance reads."""
    found = () if of.a is None else (of.a,)
    return found if of.since == "zero" else (*found, ir.PastMoment(of.since, of.n or 1))


@dataclass(frozen=True, slots=True)
class Moments:
    """The earlier tensors that rules read.

    slots: what is kept of them; for the n-th last computation, all that were later too. gains: of the filters, by
    their numbers from 1. What the model returned is kept as it is, and filtered when it is compared.
    """

    slots: tuple[SourceBefore, ...]
    gains: tuple[ir.Expr, ...]

    @classmethod
    def of(cls, measured: Sequence[ir.Change], motions: Sequence[ir.FrameDiff] = ()) -> Moments:
        """Returns what these distances, and motions of earlier steps, read."""
        gains = tuple(dict.fromkeys(e.of.gain for e in measured if e.of.gain is not None))
        slots: dict[SourceBefore, None] = {}
        for e in measured:
            number = _filter_of(e.of, gains)
            for moment in moments_of(e):
                slots |= dict.fromkeys(SourceBefore(e.of.name, moment.since, n, number) for n in range(1, moment.n + 1))
        for motion in (one for one in motions if one.a is not None):
            assert motion.a is not None
            kept = (SourceBefore(motion.of.name, motion.a.since, n) for n in range(1, motion.a.n + 1))
            slots |= dict.fromkeys(kept)
        return cls(tuple(slots), gains)

    def values(self, cells: Mapping[ir.SourceName, torch.Tensor], get: Get, leaves: Leaves) -> SourceValues:
        """Returns the tensors of one call. cells: the sources now. leaves: what gains read."""
        places = get(Places()) if self.gains else None
        return SourceValues(self, cells, get, leaves, places, {})


def _filter_of(source: ir.SourceRef, gains: tuple[ir.Expr, ...]) -> int:
    """Returns the number of the filter through which a source is kept."""
    return 0 if source.gain is None or source.name in ir.TOLD_AFTER else gains.index(source.gain) + 1


@dataclass(frozen=True, slots=True)
class SourceValues:
    """Sources now and at earlier moments, in one call. made: those that were filtered already."""

    moments: Moments
    cells: Mapping[ir.SourceName, torch.Tensor]
    get: Get
    leaves: Leaves
    places: torch.Tensor | None
    made: dict[tuple[ir.SourceName, int], torch.Tensor]

    def now(self, name: ir.SourceName, filter_: int) -> torch.Tensor:
        """Returns a source as it is now, filtered or not, [B, G, F, P, C]."""
        if filter_ == 0:
            return self.cells[name]
        if (name, filter_) not in self.made:
            self.made[name, filter_] = self._filtered(self.cells[name], self.moments.gains[filter_ - 1])
        return self.made[name, filter_]

    def change(self, of: ir.Change) -> torch.Tensor:
        """Returns how far a source is from another moment's, or from 0; see expressions.change."""
        one = self._at(of.of, of.a)
        other = one * 0.0 if of.since == "zero" else self._at(of.of, ir.PastMoment(of.since, of.n or 1))
        return change(of.distance, one, other, of.over)

    def earlier(self, of: ir.FrameDiff) -> torch.Tensor:
        """Returns the tensor of an earlier step whose motion is asked for."""
        return self._at(of.of, of.a)

    def after(
        self, slot: SourceBefore, active: torch.Tensor, computed: torch.Tensor, fresh: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns what is kept after this step. computed: chunks [B, G, 1, 1] of which something was computed.

        fresh: those of which nothing was kept before it; their present value stands for all earlier ones.
        """
        now = self.now(slot.source, slot.filter).float()
        newer = now if slot.n == 1 else self.get(SourceBefore(slot.source, slot.since, slot.n - 1, slot.filter))
        moves = active if slot.since == "step" else computed
        kept = torch.where(moves.unsqueeze(-1), newer, self.get(slot))
        if slot.n == 1:
            return kept
        assert fresh is not None
        return torch.where((active & fresh).unsqueeze(-1), now, kept)

    def _at(self, source: ir.SourceRef, moment: ir.PastMoment | None) -> torch.Tensor:
        number = _filter_of(source, self.moments.gains)
        if moment is None:
            return self.now(source.name, number)
        value = self.get(SourceBefore(source.name, moment.since, moment.n, number))
        if source.name in ir.TOLD_AFTER and source.gain is not None:
            return self._filtered(value, source.gain)
        return value

    def _filtered(self, value: torch.Tensor, gain: ir.Expr) -> torch.Tensor:
        assert self.places is not None
        return filtered(value, gain, self.leaves, self.places)
