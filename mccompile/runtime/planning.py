"""The plan of a request: static sources measured at every step of the grid, then folded by the planner."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mccompile.lowering.expressions import change
from mccompile.lowering.locate import TIMESTEP
from mccompile.lowering.sources import Located, to_cells
from mccompile.lowering.types import LoweredModel
from mccompile.policy import ir
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import static_changes
from mccompile.policy.phases import Grid
from mccompile.policy.planner import Plan, plan
from mccompile.runtime.shared import SharedValues, Value


def make_plan(
    lowered: LoweredModel, bound: BoundPolicy, grid: Grid, inputs: Mapping[str, Value], fold: bool
) -> Plan:
    """The plan for one guidance branch of a request, from its own inputs with the timestep replaced."""
    changes = static_changes(lowered.policy, lowered.static)
    tables = {c: _table(lowered, c, grid, inputs) for c in changes}
    return plan(bound, grid, tables, lowered.static, fold)


def _table(lowered: LoweredModel, of: ir.Change, grid: Grid, inputs: Mapping[str, Value]) -> tuple[float, ...]:
    """How far a static source moves into each step; entry 0 is 0 (nothing came before)."""
    where = lowered.located[of.of.name]
    values = SharedValues(lowered.captured, (where.value.removeprefix("shared:"),), lambda m, _: m.forward)
    moved = [0.0]
    before = _at(values, where, grid.timesteps[0], inputs)
    for timestep in grid.timesteps[1:]:
        now = _at(values, where, timestep, inputs)
        moved.append(float(change(of.distance, now, before, of.over).flatten()[0]))
        before = now
    return tuple(moved)


def _at(values: SharedValues, where: Located, timestep: float, inputs: Mapping[str, Value]) -> torch.Tensor:
    """The source at one timestep as [B, 1, F, P, C]; all chunks and tokens of a static source agree."""
    told = inputs[TIMESTEP]
    assert isinstance(told, torch.Tensor)
    value = next(iter(values.get({**inputs, TIMESTEP: torch.full_like(told, timestep)}).values()))
    assert isinstance(value, torch.Tensor)
    rows = value.size(where.axis) if where.layout != "constant" else 1
    shape = (value.size(0), 1, rows, 1) if where.layout == "frames" else (value.size(0), 1, 1, rows)
    return to_cells(value, where, torch.empty(shape, device="meta"))
