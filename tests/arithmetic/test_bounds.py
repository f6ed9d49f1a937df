"""Bounds of single operations, worked out by hand, and the operands for which an operation has no value."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from mccompile.arithmetic import interval
from mccompile.arithmetic.interval import ANY, Interval
from mccompile.arithmetic.operations import OPERATIONS, KnownOperand


def of(low: float, high: float) -> Interval:
    return Interval(low, high)


@pytest.mark.parametrize(
    ("a", "wanted"),
    [(of(0, 4), of(0, 2)), (of(-4, 0.25), of(0, 0.5)), (of(-3, -1), of(0, 0)), (of(0.25, 0.25), of(0.5, 0.5))],
)
def test_roots(a: Interval, wanted: Interval) -> None:
    assert interval.root(a) == wanted


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        (of(0.5, 2), of(-1, 1), of(0.5, 2)),
        (of(0, 2), of(0.5, 2), of(0, 4)),
        (of(0, 2), of(-1, 1), ANY),
        (of(-2, 1), of(2, 2), of(0, 4)),
        (of(-2, 1), of(3, 3), of(-8, 1)),
        (of(-3, -2), of(2, 2), of(4, 9)),
        (of(-2, 1), of(2, 3), ANY),
        (of(-2, 1), of(0.5, 0.5), ANY),
        (of(-2, 1), of(-2, -2), ANY),
        (of(-2, 0), of(2, 2), of(0, 4)),
        (of(-2, 1), of(0, 0), of(0, 1)),
        (of(0, 2), of(0, 1), of(0, 2)),
        (of(-2, 0.5), of(2, 2), of(0, 4)),
        (of(1e300, 1e301), of(64, 64), ANY),
    ],
)
def test_powers(a: Interval, b: Interval, wanted: Interval) -> None:
    assert interval.power(a, b) == wanted


@pytest.mark.parametrize(
    ("a", "wanted"),
    [(of(-3, 2), of(0, 3)), (of(-3, -2), of(2, 3)), (of(2, 3), of(2, 3)), (of(0, 2), of(0, 2)),
     (of(-0.5, 0.25), of(0, 0.5)), (of(0.5, 2), of(0.5, 2))],
)  # fmt: skip
def test_sizes(a: Interval, wanted: Interval) -> None:
    assert interval.size(a) == wanted


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [(of(0, 9), of(2, 4), of(0, 4)), (of(-3, 9), of(2, 4), of(0, 4)), (of(0, 1), of(2, 4), of(0, 1)),
     (of(0, 9), of(0.5, 4), of(0, 4)), (of(0, 9), of(0, 4), ANY), (of(0, 9), of(-4, -2), ANY)],
)  # fmt: skip
def test_remainders(a: Interval, b: Interval, wanted: Interval) -> None:
    assert interval.remainder(a, b) == wanted


def test_named_intervals() -> None:
    assert (of(-math.inf, math.inf), of(0, math.inf)) == (interval.ANY, interval.AT_LEAST_0)
    assert of(0, 1) == interval.TRUTH


def test_exponentials() -> None:
    assert interval.exponential(of(0, 1)) == of(1, math.e)
    assert interval.exponential(of(1, 700)) == of(math.e, math.exp(700))
    assert interval.exponential(of(701, 702)) == of(math.inf, math.inf)


@pytest.mark.parametrize(
    ("a", "b", "less", "at_most"),
    [
        (of(0, 1), of(2, 3), of(1, 1), of(1, 1)),
        (of(0, 1), of(1, 3), of(0, 1), of(1, 1)),
        (of(0, 2), of(1, 3), of(0, 1), of(0, 1)),
        (of(3, 4), of(1, 3), of(0, 0), of(0, 1)),
        (of(4, 5), of(1, 3), of(0, 0), of(0, 0)),
    ],
)
def test_comparisons(a: Interval, b: Interval, less: Interval, at_most: Interval) -> None:
    for name, wanted in (("lt", less), ("le", at_most)):
        assert OPERATIONS[name].bounds(a, b) == wanted
    for name, wanted in (("gt", less), ("ge", at_most)):
        assert OPERATIONS[name].bounds(b, a) == wanted


@pytest.mark.parametrize(
    ("op", "a", "b", "wanted"),
    [
        ("add", of(1, 2), of(10, 20), of(11, 22)),
        ("sub", of(1, 2), of(10, 20), of(-19, -8)),
        ("mul", of(-1, 2), of(10, 20), of(-20, 40)),
        ("mul", of(0, 1), of(1, math.inf), of(0, math.inf)),
        ("div", of(1, 2), of(4, 8), of(0.125, 0.5)),
        ("div", of(1, 2), of(0.5, 2), of(0.5, 4)),
        ("div", of(1, 2), of(0, 8), ANY),
        ("div", of(1, 2), of(-8, 0), ANY),
        ("div", of(1, 2), of(-8, -4), of(-0.5, -0.125)),
        ("min", of(1, 5), of(2, 3), of(1, 3)),
        ("max", of(1, 5), of(2, 3), of(2, 5)),
        ("and", of(0, 1), of(1, 1), of(0, 1)),
        ("or", of(0, 1), of(1, 1), of(1, 1)),
    ],
)
def test_bounds_of_two(op: str, a: Interval, b: Interval, wanted: Interval) -> None:
    assert OPERATIONS[op].bounds(a, b) == wanted


def test_bounds_of_one() -> None:
    assert OPERATIONS["neg"].bounds(of(1, 2)) == of(-2, -1)
    assert OPERATIONS["not"].bounds(of(0, 1)) == of(0, 1)
    assert OPERATIONS["not"].bounds(of(1, 1)) == of(0, 0)


@pytest.mark.parametrize(
    ("op", "operands", "wanted"),
    [
        ("add", (0.5, 0.25), 0.75), ("sub", (0.5, 0.25), 0.25), ("mul", (0.5, 0.25), 0.125), ("div", (0.5, 0.25), 2.0),
        ("pow", (2.0, -2.0), 0.25), ("pow", (-2.0, 3.0), -8.0), ("sqrt", (6.25,), 2.5), ("exp", (0.0,), 1.0),
        ("max", (1.0, 2.0), 2.0), ("max", (2.0, 1.0), 2.0), ("min", (1.0, 2.0), 1.0), ("min", (2.0, 1.0), 1.0),
        ("neg", (2.0,), -2.0), ("abs", (-2.0,), 2.0),
        ("lt", (1.0, 1.0), False), ("lt", (0.5, 1.0), True), ("le", (1.0, 1.0), True), ("le", (2.0, 1.0), False),
        ("gt", (1.0, 1.0), False), ("gt", (2.0, 1.0), True), ("ge", (1.0, 1.0), True), ("ge", (0.5, 1.0), False),
        ("and", (True, False), False), ("and", (True, True), True), ("or", (True, False), True),
        ("or", (False, False), False), ("not", (True,), False), ("not", (False,), True),
    ],
)  # fmt: skip
def test_values(op: str, operands: tuple[float, ...], wanted: float) -> None:
    found = OPERATIONS[op].value(*(o if isinstance(o, bool) else np.float32(o) for o in operands))
    assert found == wanted
    assert isinstance(found, bool) == isinstance(wanted, bool)
    assert isinstance(found, bool | np.float32)


def test_what_the_table_says_of_each_operation() -> None:
    rows = OPERATIONS.items()
    assert {name for name, row in rows if row.truth} == {"lt", "le", "gt", "ge", "and", "or", "not"}
    assert {name for name, row in rows if not row.whole} == {"div", "pow", "sqrt", "exp"}
    assert {row.units for _, row in rows} == {"alike", "scaled", "free"}
    assert {name for name, row in rows if row.units == "free"} == {"div", "pow"}
    assert {name for name, row in rows if row.units == "scaled"} == {"mul"}
    assert {name for name, row in rows if row.duty} == {"max", "min", "abs", "sqrt", "exp", "remainder"}
    assert {row.operands for _, row in rows} == {("left", "right"), ("of", "other"), ("of",)}
    assert {name for name, row in rows if len(row.operands) == 1} == {"neg", "abs", "sqrt", "exp", "not"}
    assert {name for name, row in rows if row.operands == ("of", "other")} == {"max", "min", "remainder"}


def known(low: float, high: float, constant: bool = True, whole: bool = True) -> KnownOperand:
    return KnownOperand(of(low, high), constant, whole)


@pytest.mark.parametrize(
    ("op", "operands", "why"),
    [
        ("div", (known(1, 1), known(0, 0)), "divides by 0"),
        ("div", (known(1, 1), known(0, 0, constant=False)), "divides by 0"),
        ("div", (known(1, 1), known(-1, 2)), "may divide by 0: the divisor is -1 to 2"),
        ("div", (known(1, 1), known(0, 2)), "may divide by 0: the divisor is 0 to 2"),
        ("div", (known(1, 1), known(-1, 2, constant=False)), ""),
        ("div", (known(1, 1), known(1, 2)), ""),
        ("pow", (known(2, 2), known(64, 64)), ""),
        ("pow", (known(2, 2), known(65, 65)), "the exponent lies between -64 and 64"),
        ("pow", (known(2, 2), known(-65, -65)), "the exponent lies between -64 and 64"),
        ("pow", (known(2, 2), known(65, 65, constant=False)), ""),
        ("pow", (known(0, 0), known(0, 0)), ""),
        ("pow", (known(0, 0), known(-1, -1)), "divides by 0"),
        ("pow", (known(1, 1), known(-1, -1)), ""),
        ("pow", (known(0, 0, constant=False), known(-1, -1)), ""),
        ("pow", (known(-2, -2), known(2, 2)), ""),
        ("pow", (known(-2, -2), known(0.5, 0.5, whole=False)), "a negative number has no such power"),
        ("pow", (known(-2, -2), known(2, 2, constant=False)), "a negative number has no such power"),
        ("pow", (known(-2, -1, constant=False), known(0.5, 0.5, whole=False)), "a negative number has no such power"),
        ("pow", (known(-1, 0, constant=False), known(0.5, 0.5, whole=False)), ""),
        ("pow", (known(0, 2), known(0.5, 0.5, whole=False)), ""),
        ("sqrt", (known(-1, 1),), "a negative number has no root"),
        ("sqrt", (known(-2, -1, constant=False),), "a negative number has no root"),
        ("sqrt", (known(-1, 0, constant=False),), ""),
        ("sqrt", (known(0, 1),), ""),
        ("exp", (known(88, 88),), ""),
        ("exp", (known(88, 88.5),), "a number is at most 3.4e38 large"),
        ("exp", (known(0, 99, constant=False),), ""),
    ],
)
def test_where_there_is_no_value(op: str, operands: tuple[KnownOperand, ...], why: str) -> None:
    assert OPERATIONS[op].undefined(*operands) == why


def test_what_the_table_says_of_results_is_true_of_their_values() -> None:
    """Conditions are truth values and nothing else is; of integers `whole` operations make integers, others do not."""
    for name, row in OPERATIONS.items():
        operands = product(map(np.float32, range(-3, 4)), repeat=len(row.operands))
        with np.errstate(all="ignore"):
            values = [row.value(*some) for some in operands]
        assert {type(value) is bool for value in values} == {row.truth}, name
        assert row.whole == all(float(value).is_integer() for value in values if np.isfinite(value)), name


@pytest.mark.parametrize(("a", "b"), [(4, -2), (-4, 2), (-4, -2), (0, -1)])
def test_a_remainder_of_0_has_no_sign(a: float, b: float) -> None:
    """Else a division by it would be infinite in the other direction."""
    found = OPERATIONS["remainder"].value(np.float32(a), np.float32(b))
    assert found == 0
    assert not np.signbit(found)
