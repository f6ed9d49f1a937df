"""Phases that no step of any run reaches, because others hold wherever they would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

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
    for number, phase in enumerate(last):
        longer = next((p for p in last[:number] if _steps(phase, ranges)[1] <= _steps(p, ranges)[0]), None)
        if longer is not None:
            yield Shadow(phase, longer, "has as many last steps or more")
    whole = next((phase for phase in last if _steps(phase, ranges)[0] >= MOST_STEPS), None)
    if whole is not None:
        how = f"is every step of a run: none has more than {MOST_STEPS}"
        yield from (Shadow(phase, whole, how) for phase in (*clocked, *in_turn))
        return
    for number, phase in enumerate(clocked):
        by = _covered(phase.span, clocked[:number], ranges)
        if by is not None:
            yield Shadow(phase, by, "holds in all of its range")
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


def _covered(span: ir.PhaseSpan, earlier: list[ir.Phase], ranges: Ranges) -> ir.Phase | None:
    """The phase that takes the last of the span's values, if the earlier ones take all of them."""
    assert isinstance(span, ir.Between)
    alike = [p for p in earlier if isinstance(p.span, ir.Between) and p.span.clock == span.clock]
    for phase in alike:
        other = phase.span
        assert isinstance(other, ir.Between)
        if (other.low, other.high) == (span.low, span.high):
            return phase
    low, high = reach(span.low, ranges).low, reach(span.high, ranges).high
    taken = sorted(((*_surely(phase.span, ranges), i) for i, phase in enumerate(alike)))
    for begin, end, number in taken:
        if begin <= low < end:
            low = end
        if low >= high:
            return alike[number]
    return None


def _surely(span: ir.PhaseSpan, ranges: Ranges) -> tuple[float, float]:
    """The values that the span has whatever the parameters are."""
    assert isinstance(span, ir.Between)
    return reach(span.low, ranges).high, reach(span.high, ranges).low


def _covers_clock(span: ir.PhaseSpan, ranges: Ranges) -> bool:
    assert isinstance(span, ir.Between)
    low, high = _surely(span, ranges)
    clock = CLOCKS[span.clock.what]
    return low <= clock.low and high > clock.high
