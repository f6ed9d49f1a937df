"""Values of static expressions in IEEE float32, in the order of operations of the compiled graph.

The lowered graph computes the same expressions with torch in float32 (lowering/expressions.py). Each leaf is rounded to
float32, and then each operation. Polynomials use Horner's scheme. A folded plan therefore decides as the graph does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy as np

from mccompile import ir
from mccompile.arithmetic.operations import OPERATIONS, StaticValue
from mccompile.arithmetic.operations import power as power_of
from mccompile.arithmetic.series import spectral_weights
from mccompile.language.walk import all_rules, children, walk_rule

EPS = np.float32(1e-8)  # guards the normalisations, as in the official MotionCache
ONE, ZERO = np.float32(1.0), np.float32(0.0)

# Sources that are functions of the timestep alone on every model (see ir.SourceName).
TIMESTEP_SOURCES: frozenset[str] = frozenset({"time_embedding", "modulation"})
_NEVER_STATIC: frozenset[str] = frozenset({"block_output", "probe", "probe_output", *ir.TOLD_AFTER})


@dataclass(frozen=True, slots=True)
class Grid:
    """The step grid of a chunk: its own number of steps, and timestep (0..1000) and sigma (0..1) of each."""

    steps: int
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.steps < 1 or len(self.timesteps) != self.steps or len(self.sigmas) != self.steps:
            raise ValueError(
                f"a grid of {self.steps} steps needs as many timesteps and sigmas, "
                f"got {len(self.timesteps)} and {len(self.sigmas)}"
            )


@dataclass(frozen=True, slots=True)
class StaticMoment:
    """What a static expression may look at: parameters, the chunk's own step, the values of changes there.

    accounts: of the cell before this step, by name; None where they are not known or there is none. tables: the values
    of changes at every own step, for earlier values. kept: the own steps at which the cell was last computed, the
    latest first; None where they are not known.
    """

    params: Mapping[str, np.float32]
    signals: Mapping[str, ir.Signal]
    grid: Grid | None
    step: int
    changes: Mapping[ir.Change, np.float32]
    accounts: Mapping[str, np.float32] | None
    tables: Mapping[ir.Change, tuple[float, ...]] = field(default_factory=dict)
    kept: tuple[int, ...] | None = None
    depth: float | None = None

    def back_at(self, step: int) -> StaticMoment:
        """The same cell at an earlier own step of the chunk."""
        changes = {c: np.float32(values[step] if step else 0.0) for c, values in self.tables.items()}
        return replace(self, step=step, changes=changes, accounts=None)


def evaluate(expr: ir.Expr, moment: StaticMoment) -> StaticValue:
    """The float32 (or, of comparisons, bool) value of a static expression.

    Raises ValueError where the expression needs what the moment does not have.
    """
    with np.errstate(all="ignore"):
        return _value(expr, moment)


def _value(expr: ir.Expr, at: StaticMoment) -> StaticValue:
    match expr:
        case ir.Const(value):
            return np.float32(value)
        case ir.ParamRef(name):
            return at.params[name]
        case ir.SignalRef(name):
            return _value(at.signals[name].expr, at)
        case ir.ClockRef(what):
            return clock_value(what, at.step, _grid(at))
        case ir.Depth():
            if at.depth is None:
                raise ValueError("it is not known here which block decides")
            return np.float32(at.depth)
        case ir.Table():
            return table_value(expr, at.step, _grid(at).steps)
        case ir.Change():
            if expr not in at.changes:
                raise ValueError(f"no value is known for the change of {expr.of.name}")
            return at.changes[expr]
        case ir.Polynomial(of, coefficients):
            return horner(_number(of, at), coefficients)
        case ir.Accumulate(of, into):
            if at.accounts is None:
                raise ValueError("`accumulate` outside a rule, or its account is not known")
            return np.float32(at.accounts[into] + _number(of, at))
        case ir.Kept(of, n):
            if not at.kept:
                raise ValueError("when the cell was last computed is not known here")
            return _value(of, at.back_at(at.kept[min(n, len(at.kept)) - 1]))
        case ir.Before(of):
            return _value(of, at.back_at(max(at.step - 1, 0)))
        case ir.Cumulative():
            return cumulative_value(expr, at.step, _grid(at))
        case ir.Average(of, n):
            return _average(_at_steps(of, range(at.step, max(at.step - n, -1), -1), at))
        case ir.Smooth(of, by):
            return _smoothed(_at_steps(of, range(at.step + 1), at), _number(by, at))
        case ir.SpectralWeight(n, degree, over, ridge):
            steps, penalty = (at.kept or ())[:over], float(_number(ridge, at))
            weights = spectral_weights(steps, at.step, _grid(at).steps, degree, penalty)
            return weights[n - 1] if n <= len(weights) else ZERO
        case ir.Stairs(of, limits, values):
            return picked(_number(of, at), limits, values)
        case ir.Normalise(norm, of, floor, power):
            return _normalise(norm, _number(of, at), _number(floor, at), _number(power, at))
        case ir.Reduce(_, of, _) | ir.Around(_, of, _):
            return _value(of, at)  # a static value is the same in all cells of a chunk
        case ir.Apply(op, args):
            return OPERATIONS[op].value(*(_value(a, at) for a in args))
        case ir.SourceRef() | ir.FrameDiff() | ir.Similarity() | ir.Frequency() | ir.Area():
            raise ValueError(f"`{type(expr).__name__}` depends on data and has no static value")
        case _:
            assert_never(expr)


def _number(expr: ir.Expr, at: StaticMoment) -> np.float32:
    return np.float32(_value(expr, at))


def _grid(at: StaticMoment) -> Grid:
    if at.grid is None:
        raise ValueError("the clock is not known here: only parameters and constants may stand here")
    return at.grid


def clock_value(what: str, step: int, grid: Grid) -> np.float32:
    """A property of the chunk's own step `step`; see ir.Clock."""
    match what:
        case "step":
            return np.float32(step)
        case "fraction":
            return np.float32(np.float32(step) / np.float32(grid.steps))
        case "timestep":
            return np.float32(grid.timesteps[step])
        case "sigma":
            return np.float32(grid.sigmas[step])
        case _:
            raise ValueError(f"unknown clock {what}")


def table_value(table: ir.Table, step: int, steps: int) -> np.float32:
    """The table's entry at the chunk's own step, resampled to the nearest (rounding as MagCache does)."""
    last = len(table.values) - 1
    index = last if steps == 1 else round(step * (last / (steps - 1)))
    return np.float32(table.values[step if steps == last + 1 else index])


def cumulative_value(of: ir.Cumulative, step: int, grid: Grid) -> np.float32:
    """The running sum or product up to the chunk's own step, each operation rounded to float32."""
    earlier = [_number(of.of, StaticMoment({}, {}, grid, s, {}, None)) for s in range(step + 1)]
    whole = np.add if of.how == "sum" else np.multiply
    return np.float32(whole.accumulate(np.array(earlier, np.float32))[-1])


def clock_row(of: ir.Table | ir.Cumulative, step: int, grid: Grid) -> np.float32:
    """A number that the chunk's own step alone settles, as the host tells it to the decision graph."""
    return table_value(of, step, grid.steps) if isinstance(of, ir.Table) else cumulative_value(of, step, grid)


def horner(x: np.float32, coefficients: tuple[float, ...]) -> np.float32:
    """Polynomial, highest power first: ((c0 x + c1) x + c2) ..., each operation rounded to float32."""
    value = np.float32(x * ZERO + np.float32(coefficients[0]))
    for c in coefficients[1:]:
        value = np.float32(np.float32(value * x) + np.float32(c))
    return value


def picked(x: np.float32, limits: tuple[float, ...], values: tuple[float, ...]) -> np.float32:
    """ir.Stairs in float32; of what is no finite number, no number."""
    index = sum(bool(x >= np.float32(limit)) for limit in limits)
    return np.float32(np.float32(values[index]) + np.float32(x * ZERO))


def _at_steps(of: ir.Expr, steps: range, at: StaticMoment) -> list[np.float32]:
    """The number at these own steps of the chunk, none of them later than this one."""
    return [_number(of, at if step == at.step else at.back_at(step)) for step in steps]


def _average(latest_first: list[np.float32]) -> np.float32:
    """The mean of the latest value and of the finite ones before it."""
    total, *earlier = latest_first
    finite = [value for value in earlier if np.isfinite(value)]
    for value in finite:
        total = np.float32(total + value)
    return np.float32(total / np.float32(1 + len(finite)))


def _smoothed(in_order: list[np.float32], by: np.float32) -> np.float32:
    value = in_order[0]
    for now in in_order[1:]:
        smooth = np.float32(np.float32(by * value) + np.float32(np.float32(ONE - by) * now))
        value = smooth if np.isfinite(value) else now
    return value


def _normalise(norm: ir.Norm, m: np.float32, floor: np.float32, power: np.float32) -> np.float32:
    """ir.Normalise of a frame whose tokens all have the value m; undefined weights are 1, as in the graph."""
    match norm:
        case "mean" | "max":
            weight = np.float32(m / np.float32(m + EPS))
        case "min_max":
            scaled = np.float32(np.float32(m - m) / np.float32(np.float32(m - m) + EPS))
            weight = np.float32(floor + np.float32(np.float32(ONE - floor) * power_of(scaled, power)))
        case _:
            assert_never(norm)
    return ONE if math.isnan(weight) else weight


# ---- what is static ----------------------------------------------------------------------------------------
def is_static(expr: ir.Expr, policy: ir.PolicyIR, static_sources: frozenset[str]) -> bool:
    """Whether the step grid, the parameters and the tables of the static sources determine `expr`.

    A change since the last computation is not static: it depends on when that was, not on the step alone.
    """
    signals = {s.name: s for s in policy.signals}

    def static(e: ir.Expr) -> bool:
        match e:
            case ir.Cumulative():
                return True
            case ir.Depth():
                return not any(region.each for region in policy.regions)  # in a model, each block is one of them
            case ir.Change(_, of, since, _, _, a):
                return since == "step" and a is None and of.name in static_sources - _NEVER_STATIC
            case ir.FrameDiff() | ir.Similarity() | ir.SourceRef() | ir.Frequency() | ir.Area():
                return False
            case ir.SignalRef(name):
                return not signals[name].late and static(signals[name].expr)
            case _:
                return all(static(c) for c in children(e))

    return static(expr)


def static_changes(policy: ir.PolicyIR, static_sources: frozenset[str] = TIMESTEP_SOURCES) -> tuple[ir.Change, ...]:
    """The distinct static changes that the rules read, in order of first use: the tables a plan needs."""
    signals = {s.name: s for s in policy.signals}
    found = (e for rule in all_rules(policy) for e in walk_rule(rule, signals))
    changes = dict.fromkeys(e for e in found if isinstance(e, ir.Change))
    return tuple(c for c in changes if is_static(c, policy, static_sources))
