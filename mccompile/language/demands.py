"""What a place in a rule or a call requires of a number: known before the run, a share, whole, or within bounds."""

from __future__ import annotations

from collections.abc import Callable

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language.errors import values
from mccompile.language.intervals import Ranges, reach
from mccompile.language.types import POISON, Poison, TypedNumber, described
from mccompile.language.walk import walk

MANY = 1_000_000
_OF_THE_CLOCK = (ir.Const, ir.ParamRef, ir.SignalRef, ir.ClockRef, ir.Depth, ir.Table, ir.Stairs, ir.Apply)

class Demands:
    """Checks of numbers under the parameters of one policy. Each reports what is wrong, at the number's own words."""

    def __init__(self, ranges: Ranges, report: Callable[[Diagnostic], Poison]) -> None:
        self.ranges = ranges
        self._report = report

    def constant(self, found: TypedNumber | Poison, what: str) -> TypedNumber | Poison:
        """A number that parameters and literals alone decide."""
        if isinstance(found, TypedNumber) and not found.constant:
            return self._report(values.NotConstant(found.expr.at, what))
        return found

    def share(self, found: TypedNumber | Poison, what: str, written: Span) -> TypedNumber | Poison:
        """A percentage between 0% and 100%. written: where it stands, for a number that is given by default too."""
        found = self.constant(found, what)
        if isinstance(found, Poison):
            return found
        if found.unit != "%":
            return self._report(values.NotAShare(written, what, described(found), _proposal(found.expr)))
        return self.bounded(found, what, 0.0, 1.0, ("0%", "100%"))

    def share_by_the_clock(self, found: TypedNumber | Poison, what: str, written: Span) -> TypedNumber | Poison:
        """A share of one chunk in one step: a percentage, or a number of the clock between 0 and 1."""
        if isinstance(found, Poison) or found.constant:
            return self.share(found, what, written)
        if not all(isinstance(e, _OF_THE_CLOCK) for e in walk(found.expr, self.ranges.signals)):
            return self._report(values.NotConstant(found.expr.at, what))
        return self.bounded(found, what, 0.0, 1.0, ("0%", "100%"))

    def whole(
        self, found: TypedNumber | Poison, what: str, least: int, counted: str = "steps"
    ) -> TypedNumber | Poison:
        """A whole number of what is counted, at least `least`."""
        found = self.constant(found, what)
        if isinstance(found, Poison):
            return found
        if found.unit not in ("", counted):
            assert found.expr.at is not None
            return self._report(values.WrongType(found.expr.at, "a count", described(found), ""))
        if not found.whole:
            return self._report(values.NotWhole(found.expr.at, what, literal=isinstance(found.expr, ir.Const)))
        return self.bounded(found, what, least, MANY, (str(least), f"{MANY:,}"))

    def bounded(
        self, found: TypedNumber, what: str, low: float, high: float, said: tuple[str, str]
    ) -> TypedNumber | Poison:
        """A number within low..high: a parameter with all of its range, an expression at least with the defaults."""
        within = reach(found.expr, self.ranges)
        if low <= within.low and within.high <= high:
            return found
        if isinstance(found.expr, ir.Const):
            how = "outside"
        elif isinstance(found.expr, ir.ParamRef):
            how = f"may be {within.low:g} to {within.high:g}"
        else:
            usual = reach(found.expr, self.ranges.at_defaults())
            if low <= usual.low and usual.high <= high and not (within.high < low or within.low > high):
                return found  # whether the values of a run fit is seen when they are bound
            how = f"is {usual.low:g} with the defaults of the parameters"
        return self._report(values.OutOfBounds(found.expr.at, what, *said, how))


def _proposal(expr: ir.Expr) -> str | None:
    if not isinstance(expr, ir.Const) or expr.at is None:
        return None
    return f"{expr.value * 100:g}%" if expr.value <= 1 else f"{expr.at.text}%"


def poisoned(*found: TypedNumber | Poison) -> bool:
    """Whether an error lies in one of them."""
    return any(part is POISON for part in found)
