"""Intervals of numbers, and the bounds of what an operation makes of them.

The bounds are safe but not tight: an operation never gives a value outside of them. A value that may be undefined (NaN)
is neither inside nor outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

INFINITE = math.inf
_FINITE = 700.0  # e to a higher power is no float64


@dataclass(frozen=True, slots=True)
class Interval:
    """All values from low to high, both included."""

    low: float
    high: float


ANY = Interval(-INFINITE, INFINITE)
AT_LEAST_0 = Interval(0.0, INFINITE)
TRUTH = Interval(0.0, 1.0)
"""The values of a condition: 0 where it fails, 1 where it holds."""


def corners(a: Interval, b: Interval, fn: Callable[[float, float], float]) -> Interval:
    """Bounds of an operation that is monotone in each operand; anything where a corner is undefined."""
    try:
        found = [fn(x, y) for x, y in product((a.low, a.high), (b.low, b.high))]
    except (ZeroDivisionError, OverflowError, ValueError):
        return ANY
    return ANY if any(math.isnan(value) for value in found) else Interval(min(found), max(found))


def remainder(a: Interval, b: Interval) -> Interval:
    """Bounds of what a division leaves: from 0 to a divisor above 0; anything where the divisor is no such number."""
    return ANY if b.low <= 0 else Interval(0.0, min(b.high, a.high) if a.low >= 0 else b.high)


def times(x: float, y: float) -> float:
    """The product. A bound of 0 is reached and an infinite bound is not, so their product is 0."""
    return 0.0 if 0.0 in (x, y) else x * y


def size(a: Interval) -> Interval:
    """Bounds of the absolute value."""
    return Interval(0.0 if a.low <= 0 <= a.high else min(abs(a.low), abs(a.high)), max(abs(a.low), abs(a.high)))


def root(a: Interval) -> Interval:
    """Bounds of the square root."""
    return Interval(math.sqrt(max(a.low, 0.0)), math.sqrt(max(a.high, 0.0)))


def exponential(a: Interval) -> Interval:
    """Bounds of e to the power of a."""
    return Interval(*(INFINITE if end > _FINITE else math.exp(end) for end in (a.low, a.high)))


def power(a: Interval, b: Interval) -> Interval:
    """Bounds of a ** b."""
    if a.low >= 0 and (a.low > 0 or b.low >= 0):
        return corners(a, b, _power_of)
    whole = b.low == b.high and float(b.low).is_integer() and b.low >= 0
    if not whole:
        return ANY
    ends = corners(a, b, _power_of)
    even = int(b.low) % 2 == 0
    return Interval(0.0, ends.high) if even and a.low <= 0 <= a.high else ends


def _power_of(x: float, y: float) -> float:
    return float(x**y)


def smaller(a: Interval, b: Interval) -> Interval:
    """Bounds of the smaller of two, and of `and`."""
    return Interval(min(a.low, b.low), min(a.high, b.high))


def larger(a: Interval, b: Interval) -> Interval:
    """Bounds of the larger of two, and of `or`."""
    return Interval(max(a.low, b.low), max(a.high, b.high))


def below(a: Interval, b: Interval) -> Interval:
    """Bounds of a < b: 1 where it always holds, 0 where it never does."""
    return _truth(holds=a.high < b.low, fails=a.low >= b.high)


def at_most(a: Interval, b: Interval) -> Interval:
    """Bounds of a <= b."""
    return _truth(holds=a.high <= b.low, fails=a.low > b.high)


def _truth(holds: bool, fails: bool) -> Interval:
    return Interval(1.0, 1.0) if holds else Interval(0.0, 0.0) if fails else TRUTH
