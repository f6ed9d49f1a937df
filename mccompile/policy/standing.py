"""What stands in for kept results must have a value wherever a plan may reuse them. Otherwise no run begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.language.walk import weights_after
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.cells import Cell, Plan
from mccompile.policy.errors import WeightUndefined
from mccompile.policy.evaluate import Grid, StaticMoment, evaluate
from mccompile.policy.planner import plan


def sound_plan(
    bound: BoundPolicy, grid: Grid, tables: Mapping[ir.Change, tuple[float, ...]] | None = None,
    static_sources: frozenset[str] = frozenset(),
) -> Plan:  # fmt: skip
    """As `plan`, of a policy as one group of regions sees it; without tables, what the clock alone settles.

    Raises PolicyError (MC0311) besides.
    """
    made = plan(bound, grid, tables or {}, static_sources)
    problems = tuple(undefined(bound, grid, made.cells))
    if problems:
        raise PolicyError(problems)
    return made


def undefined(bound: BoundPolicy, grid: Grid, cells: Sequence[Cell]) -> Iterator[Diagnostic]:
    """For each stand-in whose weights are no numbers at a step that may reuse, the first such step.

    Where data has decided before, weights are looked at that only the clock settles: when a cell was computed is then
    not known. MC0620 is left for the others.
    """
    params = {name: np.float32(value) for name, value in bound.values.items()}
    signals = {s.name: s for s in bound.ir.signals}
    told: set[ir.Forecast] = set()
    computed: tuple[int, ...] | None = ()
    for cell in cells:
        if cell.action == "compute":
            computed = (cell.step, *computed) if computed is not None else None
            continue
        computed = None if cell.action == "dynamic" else computed
        at = StaticMoment(params, signals, grid, cell.step, {}, None, {}, computed, bound.depth)
        for forecast in (one for one in _standing(bound, cell) if one not in told):
            weight = next((w for w in _weights(forecast, computed) if _is_undefined(w, at)), None)
            if weight is not None:
                told.add(forecast)
                yield WeightUndefined(weight.at, bound.ir.name, cell.step, float(np.float32(evaluate(weight, at))))


def _standing(bound: BoundPolicy, cell: Cell) -> Iterator[ir.Forecast]:
    """All that may stand in at a step: of the alternative that the plan knows, else of every one."""
    phases = bound.ir.phases if cell.phase is None else (bound.ir.phases[cell.phase],)
    for phase in phases:
        own = phase.rule.stand_ins if isinstance(phase.rule, ir.Reuse) else None
        chosen = (None,) if own is None else (own[cell.way],) if cell.action == "reuse" else own
        for one in chosen:
            yield from bound.stand_ins if one is None else (one,)


def _weights(forecast: ir.Forecast, computed: tuple[int, ...] | None) -> Iterator[ir.Expr]:
    """The weights that hold after these computations; after unknown ones all."""
    for rows in (forecast.weights, forecast.passed or ()):
        known = rows if not rows or computed is None else (weights_after(rows, max(len(computed), 1)),)
        yield from (weight for row in known for weight in row)


def _is_undefined(weight: ir.Expr, at: StaticMoment) -> bool:
    try:
        return not np.isfinite(np.float32(evaluate(weight, at)))
    except ValueError:  # it looks at what is not known here
        return False
