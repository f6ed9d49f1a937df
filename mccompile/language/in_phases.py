"""Conditions that are the same at every step of their phase: a phase has a part of the run's steps and clock values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mccompile import ir
from mccompile.arithmetic.interval import Interval
from mccompile.language.decided import DecidedPart, decided_parts
from mccompile.language.intervals import Ranges, reach
from mccompile.language.walk import rules_of


@dataclass(frozen=True, slots=True)
class DecidedInPhase:
    """A part of a condition of the phase's rule. why: what the phase makes of the clock, in words."""

    part: DecidedPart
    whole: bool
    phase: ir.Phase
    why: str


def decided_in_phases(phases: tuple[ir.Phase, ...], ranges: Ranges) -> Iterator[DecidedInPhase]:
    """The parts that could decide somewhere in the run, and cannot in their phase."""
    for phase, clock, within, why in _clocks(phases, ranges):
        narrowed = replace(ranges, clocks={**ranges.clocks, clock: within}, known={})
        for rule in rules_of(phase):
            if isinstance(rule, ir.Reuse) and not any(decided_parts(rule.condition, ranges)):
                for part in decided_parts(rule.condition, narrowed):
                    yield DecidedInPhase(part, part.expr is rule.condition, phase, why)


def _clocks(
    phases: tuple[ir.Phase, ...], ranges: Ranges
) -> Iterator[tuple[ir.Phase, ir.ClockName, Interval, str]]:
    """For each phase that has a part of a clock's values: the clock, these values, and why."""
    passed = 0.0  # steps that the phases before take at least, whatever the parameters are
    for phase in phases:
        match phase.span:
            case ir.Between(clock, low, high):
                whole = ranges.clocks[clock.what]
                below = math.nextafter(reach(high, ranges).high, -math.inf)  # which itself is not in the phase
                least, most = max(reach(low, ranges).low, whole.low), min(below, whole.high)
                if least <= most:
                    why = f"in this phase `{clock.what}` lies between {least:g} and {most:g}"
                    yield phase, clock.what, Interval(least, most), why
            case ir.LastSteps():
                continue
            case span:
                whole = ranges.clocks["step"]
                if 0 < passed <= whole.high:
                    yield phase, "step", Interval(passed, whole.high), f"this phase begins at step {passed:g} or later"
                if isinstance(span, ir.ForSteps | ir.UntilRefreshes):
                    passed += reach(span.n, ranges).low
