"""Makes the plan of a request: measures static sources at every step of the grid, and folds them with the planner."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mccompile import ir
from mccompile.lowering.expressions import change
from mccompile.lowering.locate import TIMESTEP
from mccompile.lowering.sources import Located, to_cells
from mccompile.lowering.strip import Slim, strip_unused
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import static_changes
from mccompile.policy.phases import Grid
from mccompile.policy.planner import Plan, plan
from mccompile.runtime.shared import SharedValues, Value

ROWS = 2  # of a static source that are looked at: all tokens agree, and 1 is a size that graphs specialise on


def make_plan(
    lowered: LoweredModel, bound: BoundPolicy, grid: Grid, inputs: Mapping[str, Value], fold: bool
) -> Plan:
    """The plan for one guidance branch of a request, from its own inputs with the timestep replaced."""
    changes = static_changes(lowered.policy, lowered.static)
    sources = {c.of.name: _StaticSource(lowered, lowered.located[c.of.name]) for c in changes}
    tables = {c: sources[c.of.name].table(c, grid, inputs) for c in changes}
    return plan(bound, grid, tables, lowered.static, fold)


class _StaticSource:
    """A source that does not depend on the latents, at any timestep."""

    def __init__(self, lowered: LoweredModel, where: Located) -> None:
        captured = lowered.captured
        name = where.value.removeprefix("shared:")
        self._captured = captured
        self._where = where
        self._gather: Slim | None = None
        names: tuple[str, ...] = (name,)
        if captured.gather is not None and name in captured.gathered:  # a few rows, not all that it expands to
            self._gather = strip_unused(captured.gather, (captured.gathered.index(name),))
            names = tuple(captured.sources[i - 1].name for i in self._gather.kept if i)
        self._names = names
        self._values = SharedValues(captured, names, lambda module, _: module.forward)

    def table(self, of: ir.Change, grid: Grid, inputs: Mapping[str, Value]) -> tuple[float, ...]:
        """How far the source moves into each step; entry 0 is 0 (nothing came before)."""
        moved = [0.0]
        before = self._at(grid.timesteps[0], inputs)
        for timestep in grid.timesteps[1:]:
            now = self._at(timestep, inputs)
            moved.append(float(change(of.distance, now, before, of.over).flatten()[0]))
            before = now
        return tuple(moved)

    def _at(self, timestep: float, inputs: Mapping[str, Value]) -> torch.Tensor:
        """The source at one timestep as [B, 1, F, P, C]."""
        told = inputs[TIMESTEP]
        assert isinstance(told, torch.Tensor)
        found = self._values.get({**inputs, TIMESTEP: torch.full_like(told, timestep)})
        value = found[self._names[0]]
        if self._gather is not None:
            index = torch.arange(ROWS, device=told.device)
            arguments = [index if i == 0 else found[self._captured.sources[i - 1].name] for i in self._gather.kept]
            value = self._gather.module(*arguments)[0]
        assert isinstance(value, torch.Tensor)
        rows = value.size(self._where.axis) if self._where.layout != "constant" else 1
        shape = (value.size(0), 1, rows, 1) if self._where.layout == "frames" else (value.size(0), 1, 1, rows)
        return to_cells(value, self._where, torch.empty(shape, device="meta"))
