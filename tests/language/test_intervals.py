"""What is said about an expression before any run holds of every run: bounds, and conditions that decide nothing."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mccompile import ir
from mccompile.arithmetic.interval import Interval
from mccompile.arithmetic.operations import OPERATIONS, Operator
from mccompile.language.decided import decided_parts
from mccompile.language.intervals import CLOCKS, Ranges, reach
from mccompile.policy.evaluate import Grid, StaticMoment, evaluate

PARAMS = {
    "p": ir.Param("p", 0.5, 0.0, 2.0, False, ""),
    "q": ir.Param("q", -1.0, -4.0, 3.0, False, ""),
}
MOVED = ir.Change("rel_l1", ir.SourceRef("modulation"), "step", ir.Granularity.CHUNK)
TURNED = ir.Change("cosine", ir.SourceRef("latent"), "step", ir.Granularity.CHUNK)
SIGNAL = ir.Signal("s", ir.Apply("sub", (MOVED, ir.Const(1.0))), ir.Granularity.CHUNK, False)
RANGES = Ranges(PARAMS, {"s": SIGNAL})

numbers = st.sampled_from((-3.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 10.0)).map(ir.Const)
leaves = st.one_of(
    numbers,
    st.sampled_from((ir.ParamRef("p"), ir.ParamRef("q"), ir.SignalRef("s"), MOVED, TURNED)),
    st.sampled_from([ir.ClockRef(name) for name in CLOCKS]),
    st.just(ir.Table((0.5, 3.0, 1.0))),
)


def _larger(inner: st.SearchStrategy[ir.Expr]) -> st.SearchStrategy[ir.Expr]:
    numeric = {name: row for name, row in OPERATIONS.items() if not row.truth}
    each = (st.tuples(st.just(n), st.tuples(*[inner] * len(row.operands))) for n, row in numeric.items())
    return st.one_of(
        st.one_of(*each).map(lambda drawn: ir.Apply(*drawn)),
        st.builds(ir.Polynomial, inner, st.sampled_from(((1.0,), (2.0, -1.0), (1.0, 0.0, -0.5)))),
        st.builds(ir.Accumulate, inner),
    )


expressions: st.SearchStrategy[ir.Expr] = st.recursive(leaves, _larger, max_leaves=5)
comparisons = st.builds(
    lambda op, a, b: ir.Apply(op, (a, b)), st.sampled_from(("lt", "le", "gt", "ge")), leaves, st.one_of(numbers, leaves)
)


def _joined(inner: st.SearchStrategy[ir.Expr]) -> st.SearchStrategy[ir.Expr]:
    return st.one_of(
        st.builds(lambda op, a, b: ir.Apply(op, (a, b)), st.sampled_from(("and", "or")), inner, inner),
        st.builds(lambda a: ir.Apply("not", (a,)), inner),
    )


conditions: st.SearchStrategy[ir.Expr] = st.recursive(comparisons, _joined, max_leaves=4)


@st.composite
def moments(draw: st.DrawFn) -> StaticMoment:
    """A step of some run: every value within what its leaf can be."""
    steps = draw(st.sampled_from((1, 7, 50, 1000)))
    step = draw(st.integers(0, steps - 1))
    sigma = draw(st.floats(0, 1, width=32))
    params = {n: np.float32(draw(st.floats(p.low, p.high, width=32))) for n, p in PARAMS.items()}
    moved, turned = (np.float32(draw(st.floats(0, most, width=32))) for most in (100, 2))
    changes = {MOVED: moved, TURNED: turned}
    grid = Grid(steps, (1000 * sigma,) * steps, (sigma,) * steps)
    return StaticMoment(params, {"s": SIGNAL}, grid, step, changes, {"account": np.float32(0)})


def near(value: float, within: Interval) -> bool:
    """Within the bounds, up to the rounding of float32."""
    slack = 1e-4 * max(1.0, abs(value))
    return within.low - slack <= value <= within.high + slack


@given(expressions, moments())
def test_no_value_lies_outside_of_its_bounds(expr: ir.Expr, moment: StaticMoment) -> None:
    value = float(evaluate(expr, moment))
    if math.isfinite(value):
        assert near(value, reach(expr, RANGES))


@given(conditions, moments())
def test_a_decided_part_is_so_at_every_step(condition: ir.Expr, moment: StaticMoment) -> None:
    for part in decided_parts(condition, RANGES):
        assert bool(evaluate(part.expr, moment)) is part.always


def compare(op: str, left: ir.Expr, right: float | ir.Expr) -> ir.Expr:
    other = right if isinstance(right, ir.Expr) else ir.Const(right)
    return ir.Apply(cast(Operator, op), (left, other))


def both(left: ir.Expr, right: ir.Expr) -> ir.Expr:
    return ir.Apply("and", (left, right))


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        (compare("ge", MOVED, 0.0), [True]),
        (compare("lt", MOVED, 0.0), [False]),
        (compare("le", MOVED, 0.0), []),
        (compare("gt", TURNED, 2.0), [False]),
        (compare("lt", MOVED, ir.ParamRef("p")), []),
        (compare("lt", TURNED, ir.Apply("add", (ir.ParamRef("p"), ir.Const(3.0)))), [True]),
        (both(compare("lt", MOVED, ir.ParamRef("p")), compare("gt", MOVED, ir.ParamRef("p"))), [False]),
        (both(compare("lt", MOVED, ir.ParamRef("p")), compare("lt", ir.ParamRef("p"), MOVED)), [False]),
        (both(compare("lt", MOVED, 0.1), compare("gt", MOVED, 0.5)), [False]),
        (both(compare("lt", MOVED, 0.5), compare("gt", MOVED, 0.1)), []),
        (both(compare("lt", MOVED, 0.5), compare("lt", ir.ClockRef("step"), 1000.0)), [True]),
        (ir.Apply("not", (compare("lt", ir.ClockRef("sigma"), 2.0),)), [False]),
    ],
)
def test_conditions_that_decide_nothing(condition: ir.Expr, found: list[bool]) -> None:
    assert [part.always for part in decided_parts(condition, RANGES)] == found
