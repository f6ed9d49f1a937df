"""What a run of so many steps makes void: fits used where they do not hold, and thresholds that decide nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mccompile import ir
from mccompile.arithmetic.fitted import Fitted
from mccompile.language.coefficients import fit_of
from mccompile.language.walk import all_rules, walk, walk_rule
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.cells import Cell, Plan
from mccompile.policy.evaluate import Grid, StaticMoment, evaluate, is_static
from mccompile.policy.rules import Static

BEYOND = 0.05  # the share by which an argument may be above the highest one that a fit has seen
REMEDY = "fit it for this model and number of steps, bound it (`max(..., 0)`), or use another signal"


def fits_of(policy: ir.PolicyIR) -> tuple[ir.Polynomial, ...]:
    """The polynomials that the rules read, in order of first use."""
    signals = {s.name: s for s in policy.signals}
    found = (e for rule in all_rules(policy) for e in walk_rule(rule, signals))
    return tuple(dict.fromkeys(e for e in found if isinstance(e, ir.Polynomial)))


def negative_fit(fit: ir.Polynomial, values: Sequence[tuple[str, float, float]], of: str) -> str:
    """What to tell of a fit that gave negative distances.

    values: for each time that it did, when, its argument, and what it gave. of: how often it was asked, with the noun.
    """
    known = origin_of(fit)
    name = _named(known)
    when, argument, value = min(values, key=lambda found: found[2])
    holds = "" if known is None or known.domain is None else _within(known)
    return (
        f"{name} is used outside of its domain: it gives a negative distance at {len(values)} of {of} "
        f"({value:.3g} for {argument:.3g} at {when}){holds}; {REMEDY}"
    )


def origin_of(fit: ir.Polynomial) -> Fitted | None:
    """Where a polynomial comes from: what the policy named, or the shipped set that has its coefficients."""
    found = fit_of(fit.coefficients)
    return fit.origin or (None if found is None else found.known)


def beyond(fit: ir.Polynomial, values: Sequence[tuple[str, float]], of: str) -> str:
    """What to tell of a fit whose arguments were not seen when it was fitted; "" where all were, or nobody knows.

    values: for each time that it was asked, when, and its argument. of: as in `negative_fit`.
    """
    known = origin_of(fit)
    if known is None or known.fitted is None:
        return ""
    above = [(when, x) for when, x in values if x > known.fitted[1] * (1 + BEYOND)]
    if not above:
        return ""
    when, most = max(above, key=lambda found: found[1])
    return (
        f"{_named(known)} is used beyond what it was fitted on at {len(above)} of {of} "
        f"({most:.3g} at {when}; it was fitted on {known.fitted[0]:.3g} to {known.fitted[1]:.3g}); {REMEDY}"
    )


def _named(known: Fitted | None) -> str:
    return "a polynomial" if known is None or not known.name else f"polynomial {known.name}"


def _within(known: Fitted) -> str:
    assert known.domain is not None
    return f", and is none from {known.domain[0]:g} to {known.domain[1]:g} only"


def static_notes(bound: BoundPolicy, grid: Grid, static: Static, cells: Sequence[Cell]) -> Iterator[str]:
    """Of what is known before a run: changes that are no numbers, and fits outside of their domain."""
    for change, table in static.tables.items():
        odd = [str(step) for step in range(1, grid.steps) if not np.isfinite(np.float32(table[step]))]
        if odd:
            yield f"the change of {change.of.name} is not finite at step {', '.join(odd)}: computed there"
    signals = {s.name: s for s in bound.ir.signals}
    for fit in fits_of(bound.ir):
        past = any(isinstance(e, ir.Kept | ir.Accumulate) for e in walk(fit.of, signals))
        if past or not is_static(fit.of, bound.ir, static.sources):
            continue  # what was computed when is not known of a fit alone
        asked = [c.step for c in cells if c.step and (c.phase is None or _reads(bound, c.phase, fit))]
        found, arguments = [], []
        for step in asked:
            changes = {c: np.float32(t[step]) for c, t in static.tables.items()}
            params = {name: np.float32(v) for name, v in bound.values.items()}
            at = StaticMoment(params, signals, grid, step, changes, None, static.tables, depth=bound.depth)
            value, argument = float(evaluate(fit, at)), float(evaluate(fit.of, at))
            arguments.append((f"step {step}", argument))
            if value < 0:
                found.append((f"step {step}", argument, value))
        if found:
            yield negative_fit(fit, found, f"{len(asked)} steps")
        elif far := beyond(fit, arguments, f"{len(asked)} steps"):
            yield far


def _reads(bound: BoundPolicy, phase: int, fit: ir.Polynomial) -> bool:
    signals = {s.name: s for s in bound.ir.signals}
    rule = bound.ir.phases[phase].rule
    return fit in walk_rule(rule, signals)


def without_influence(bound: BoundPolicy, made: Plan, again: Callable[[BoundPolicy], Plan]) -> Iterator[str]:
    """Thresholds that decide nothing in a plan that leaves nothing to the run.

    made: the plan. again: the plan with other values. A threshold is a parameter that a condition compares with.
    """
    if any(cell.action == "dynamic" for cell in made.cells):
        return
    actions = [(c.action, c.way) for c in made.cells]
    for param in _thresholds(bound.ir):
        ends = [replace(bound, values={**bound.values, param.name: end}) for end in (param.low, param.high)]
        if all([(c.action, c.way) for c in again(other).cells] == actions for other in ends):
            yield (
                f"parameter {param.name} has no influence: the same steps are computed "
                f"from {param.low:g} to {param.high:g}"
            )


def _thresholds(policy: ir.PolicyIR) -> Iterable[ir.Param]:
    signals: Mapping[str, ir.Signal] = {s.name: s for s in policy.signals}
    compared = {
        side.name
        for phase in policy.phases
        if isinstance(phase.rule, ir.Reuse)
        for e in walk(phase.rule.condition, signals)
        if isinstance(e, ir.Apply) and e.op in ("lt", "le", "gt", "ge")
        for side in e.args
        if isinstance(side, ir.ParamRef)
    }
    return (p for p in policy.params if p.name in compared)
