"""Phases that no step of any run reaches, because others hold wherever they would."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

from mccompile import ir
from mccompile.language.intervals import CLOCKS, MOST_STEPS, Ranges, reach


@dataclass(frozen=True, slots=True)
class Shadow:
    """`phase` is never reached. by: the phase that holds in its place. how: how that one takes its steps."""

    phase: ir.Phase
    by: ir.Phase
    how: str


def shadows(phases: tuple[ir.Phase, ...], ranges: Ranges) -> Iterator[Shadow]:
    """The phases that are never reached, but for those behind one without an end."""
    last = [phase for phase in phases if isinstance(phase.span, ir.LastSteps)]
    clocked = [phase for phase in phases if isinstance(phase.span, ir.Between)]
    in_turn = [phase for phase in phases if not isinstance(phase.span, ir.LastSteps | ir.Between)]
    longest = None
    for phase in last:
        if longest is not None and _steps(phase, ranges)[1] <= _steps(longest, ranges)[0]:
            yield Shadow(phase, longest, "has as many last steps or more")
        elif longest is None or _steps(phase, ranges)[0] > _steps(longest, ranges)[0]:
            longest = phase
    whole = next((phase for phase in last if _steps(phase, ranges)[0] >= MOST_STEPS), None)
    if whole is not None:
        how = f"is every step of a run: none has more than {MOST_STEPS}"
        yield from (Shadow(phase, whole, how) for phase in (*clocked, *in_turn))
        return
    taken = TakenClocks(ranges)
    for phase in clocked:
        by = taken.by(phase)
        if by is not None:
            yield Shadow(phase, by, "holds in all of its range")
        taken.add(phase)
    everywhere = next((p for p in clocked if _covers_clock(p.span, ranges)), None)
    if everywhere is not None:
        yield from (Shadow(phase, everywhere, "holds at every step of a run") for phase in in_turn)
        return
    for phase, following in pairwise(in_turn):
        if isinstance(phase.span, ir.ForSteps) and _steps(phase, ranges)[0] >= MOST_STEPS:
            yield Shadow(following, phase, f"lasts longer than a run: none has more than {MOST_STEPS} steps")


def _steps(phase: ir.Phase, ranges: Ranges) -> tuple[float, float]:
    assert isinstance(phase.span, ir.LastSteps | ir.ForSteps)
    found = reach(phase.span.n, ranges)
    return found.low, found.high


class TakenClocks:
    """The values of each clock that earlier phases take, whatever the parameters are."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._alike: dict[ir.PhaseSpan, ir.Phase] = {}
        self._parts: dict[ir.ClockName, list[tuple[float, float, ir.Phase]]] = {}  # apart from each other, in order

    def by(self, phase: ir.Phase) -> ir.Phase | None:
        """The phase that takes the last of the phase's values, if earlier ones take all of them."""
        span = phase.span
        assert isinstance(span, ir.Between)
        if span in self._alike:
            return self._alike[span]
        low, high = reach(span.low, self._ranges).low, reach(span.high, self._ranges).high
        parts = self._parts.get(span.clock.what, [])
        at = bisect_right(parts, low, key=itemgetter(0)) - 1
        return parts[at][2] if at >= 0 and high <= parts[at][1] else None

    def add(self, phase: ir.Phase) -> None:
        """Takes the values of the phase too."""
        span = phase.span
        assert isinstance(span, ir.Between)
        self._alike.setdefault(span, phase)
        low, high = _surely(span, self._ranges)
        if low >= high:
            return
        parts = self._parts.setdefault(span.clock.what, [])
        begin = bisect_left(parts, low, key=itemgetter(1))
        end = bisect_right(parts, high, key=itemgetter(0))
        met = parts[begin:end]
        last = max((*met, (low, high, phase)), key=itemgetter(1))
        parts[begin:end] = [(min(low, *(part[0] for part in met)) if met else low, last[1], last[2])]


def _surely(span: ir.PhaseSpan, ranges: Ranges) -> tuple[float, float]:
    """The values that the span has whatever the parameters are."""
    assert isinstance(span, ir.Between)
    return reach(span.low, ranges).high, reach(span.high, ranges).low


def _covers_clock(span: ir.PhaseSpan, ranges: Ranges) -> bool:
    assert isinstance(span, ir.Between)
    low, high = _surely(span, ranges)
    clock = CLOCKS[span.clock.what]
    return low <= clock.low and high > clock.high
