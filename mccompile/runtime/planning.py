"""Makes the plan of a request: measures static sources at every step of the grid, and folds them with the planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mccompile import ir
from mccompile.capture.part import Part, RowSource, Shared
from mccompile.capture.types import TokenGrid
from mccompile.lowering.expressions import change
from mccompile.lowering.locate import timestep_of
from mccompile.lowering.sources import Located, to_cells
from mccompile.lowering.strip import stripped
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import static_changes
from mccompile.policy.influence import without_influence
from mccompile.policy.phases import Grid
from mccompile.policy.planner import Plan, plan
from mccompile.policy.standing import sound_plan
from mccompile.runtime.clock import Told, Untold
from mccompile.runtime.errors import UnknownTimesteps
from mccompile.runtime.shared import SharedValues, Value

ROWS = 2  # of a static source that are looked at: all tokens agree, and 1 is a size that graphs specialise on


def make_plans(
    lowered: LoweredModel, bounds: Mapping[str, BoundPolicy], grid: Grid, inputs: Mapping[str, Value], fold: bool,
    told: Told | Untold | None = None,
) -> dict[str, Plan]:
    """The plan of each group of regions, for one guidance branch of a request. Static sources are measured once.

    bounds: the model's policy as each group sees it. The other arguments and the errors are those of `static_tables`.
    """  # fmt: skip
    tables = static_tables(lowered, grid, inputs, told)
    return {group: planned(lowered, bound, grid, tables, fold) for group, bound in bounds.items()}


def planned(
    lowered: LoweredModel, bound: BoundPolicy, grid: Grid, tables: Mapping[ir.Change, tuple[float, ...]], fold: bool
) -> Plan:
    """The plan of one group of regions, from the values of static sources, and what has no influence in it."""
    made = sound_plan(bound, grid, tables, lowered.static) if fold else plan(bound, grid, tables, lowered.static, False)
    idle = without_influence(bound, made, lambda other: plan(other, grid, tables, lowered.static, fold))
    return replace(made, notes=(*made.notes, *idle))


def static_tables(
    lowered: LoweredModel, grid: Grid, inputs: Mapping[str, Value], told: Told | Untold | None = None
) -> dict[ir.Change, tuple[float, ...]]:
    """The values of the policy's static changes at every step of the grid.

    inputs: of one guidance branch; the timestep in them is replaced. told: the timesteps that the model is given at the
    steps of the grid; None: the grid's own. Raises UnknownTimesteps (MC0611) where they are needed and not known.
    """
    changes = static_changes(lowered.policy, lowered.static)
    timesteps = grid.timesteps
    match told:
        case Told():
            timesteps = told.timesteps
        case Untold() if changes:
            raise UnknownTimesteps(lowered.policy.name, told.why)
    sources = {c.of.name: _StaticSource(lowered, lowered.located[c.of.name]) for c in changes}
    return {c: sources[c.of.name].table(c, timesteps, inputs) for c in changes}


class _StaticSource:
    """A source that does not depend on the latents, at any timestep."""

    def __init__(self, lowered: LoweredModel, where: Located) -> None:
        captured = lowered.captured
        assert isinstance(where.value, Shared)
        name = where.value.name
        self._where = where
        self._timestep = timestep_of(lowered.captured)
        self._grid = captured.grid
        self._gather: Part | None = None
        names: tuple[str, ...] = (name,)
        if captured.gather is not None and name in captured.gathered:  # a few rows, not all that it expands to
            self._gather = stripped(captured.gather, frozenset((where.value,)))
            names = tuple(o.name for o in self._gather.takes if isinstance(o, RowSource))
        self._names = names
        self._values = SharedValues(captured, names, lambda module, _: module.forward)

    def table(self, of: ir.Change, timesteps: Sequence[float], inputs: Mapping[str, Value]) -> tuple[float, ...]:
        """How far the source moves into each step; entry 0 is 0 (nothing came before)."""
        moved = []
        before = self._at(timesteps[0], inputs)
        for timestep in timesteps[1:]:
            now = self._at(timestep, inputs)
            moved.append(change(of.distance, now, before, of.over).flatten()[0])
            before = now
        return (0.0, *(torch.stack(moved).tolist() if moved else ()))  # one read of the device for all steps

    def _at(self, timestep: float, inputs: Mapping[str, Value]) -> torch.Tensor:
        """The source at one timestep as [B, 1, F, P, C]."""
        told = inputs[self._timestep]
        assert isinstance(told, torch.Tensor)
        found = self._values.get({**inputs, self._timestep: torch.full_like(told, timestep)})
        value = found[self._names[0]]
        if self._gather is not None:
            index = torch.arange(ROWS, device=told.device)
            value = self._gather(*(found[o.name] if isinstance(o, RowSource) else index for o in self._gather.takes))[0]
        assert isinstance(value, torch.Tensor)
        value = self._grid.together(value, inputs) if isinstance(self._grid, TokenGrid) else value
        rows = value.size(self._where.axis) if self._where.layout != "constant" else 1
        return to_cells(value, self._where, torch.empty((value.size(0), 1, 1, rows), device="meta"))
