"""Step masks: which steps they compute, and whether they can."""

from __future__ import annotations

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.language import ast
from mccompile.language.errors import phases
from mccompile.language.intervals import MOST_STEPS

LONGEST = 10_000


def mask_steps(rule: ast.ComputeSteps | ast.ComputeBins) -> tuple[bool, ...]:
    """The mask of a checked rule, True = compute."""
    if isinstance(rule, ast.ComputeBins):
        return tuple(bin_.compute for bin_ in rule.bins for _ in range(int(bin_.n.value)))
    ends = [int(end.last.value if end.last else end.first.value) for end in rule.ranges]
    length = int(rule.length.value) if rule.length else max(ends) + 1
    mask = [False] * length
    for part in rule.ranges:
        last = int(part.last.value) if part.last else length - 1
        for step in range(int(part.first.value), last + 1):
            mask[step] = True
    return tuple(mask)


def check_mask(
    rule: ast.ComputeSteps | ast.ComputeBins, errors: list[Diagnostic], begins_run: bool
) -> None:
    """Appends what is wrong with the mask; with `begins_run` only whether step 0 is computed."""
    if begins_run:
        begins = rule.bins[0].compute if isinstance(rule, ast.ComputeBins) else _names_step_0(rule)
        if not begins:
            errors.append(phases.BeginsWithReuse(rule.span))
    elif isinstance(rule, ast.ComputeBins):
        _check_bins(rule, errors)
    else:
        _check_ranges(rule, errors)


def _names_step_0(rule: ast.ComputeSteps) -> bool:
    return any(part.first.value == 0 for part in rule.ranges)


def _check_bins(rule: ast.ComputeBins, errors: list[Diagnostic]) -> None:
    for bin_ in rule.bins:
        if bin_.n.value == 0:
            errors.append(phases.BadStepRange(bin_.span, "no step at all"))
    if sum(bin_.n.value for bin_ in rule.bins) > LONGEST:
        errors.append(phases.BadStepRange(rule.span, f"more than {LONGEST:,} steps"))


def _check_ranges(rule: ast.ComputeSteps, errors: list[Diagnostic]) -> None:
    reached = -1.0
    end = rule.length.value if rule.length else LONGEST
    if end > LONGEST and rule.length:
        errors.append(phases.BadStepRange(rule.length.span, f"more than {LONGEST:,} steps"))
    for part in rule.ranges:
        first = part.first.value
        last = part.last.value if part.last else max(first, end - 1)
        if part.last is None and rule.length is None:
            errors.append(phases.OpenMask(part.span))
        beyond = "" if last < end else f"the mask has the steps 0 to {end - 1:.0f}"
        why = _out_of_order(first, last, reached) or beyond
        errors += [phases.BadStepRange(part.span, why)] if why else []
        reached = max(reached, last)


def _out_of_order(first: float, last: float, reached: float) -> str:
    """What is wrong with a range after one that ends at `reached`; "" if nothing is."""
    if last < first:
        return "ends before it begins"
    return "steps are named in rising order, each once" if first <= reached else ""


def steps_of(ranges: tuple[ast.StepRange, ...]) -> tuple[int, ...]:
    """The steps of checked ranges, none of them open."""
    ends = ((int(part.first.value), int((part.last or part.first).value)) for part in ranges)
    return tuple(step for first, last in ends for step in range(first, last + 1))


def check_steps(ranges: tuple[ast.StepRange, ...], errors: list[Diagnostic]) -> None:
    """Appends what is wrong with steps that are named one by one; none of the ranges is open."""
    reached = -1.0
    for part in ranges:
        first, last = part.first.value, (part.last or part.first).value
        beyond = "" if last < MOST_STEPS else f"no run has more than {MOST_STEPS:,} steps"
        why = _out_of_order(first, last, reached) or beyond
        errors += [phases.BadStepRange(part.span, why)] if why else []
        reached = max(reached, last)
