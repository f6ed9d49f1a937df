"""Describes a policy in words: what it does, its parameters and signals, and what is decided before the first frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mccompile import ir
from mccompile.cli.terminal import aligned
from mccompile.language import ast
from mccompile.language.extend import Merged
from mccompile.language.spell import guard, rule, spell, when, whose
from mccompile.language.types import word
from mccompile.policy.cells import Plan
from mccompile.policy.in_words import chunks, kept, known, parameter, regions, rules_decided

if TYPE_CHECKING:
    from mccompile.generate.worth import Worth


def describe(
    written: Merged, policy: ir.PolicyIR, comments: Sequence[str], choices: Mapping[str, tuple[str, Sequence[str]]],
    numbers: Mapping[str, float],
) -> Iterator[str]:
    """Lines: the name, then the parts in the order in which one asks for them.

    written: what `policy` was made of. choices: of each the alternative that holds, and all of them. numbers: the
    parameters that were set.
    """  # fmt: skip
    models = f", calibrated for {', '.join(policy.models)}" if policy.models else ""
    yield f"{policy.name}{models}"
    yield from (f"  {c.removeprefix('#').strip()}" for c in comments)
    yield "\nWhat it does"
    yield from _indented([row for p in written.phases.values() for row in _phase(p)])
    for line in (*regions(policy), *chunks(policy), *kept(policy.cache)):
        yield f"  {line}"
    if choices:
        yield "\nChoices (--set NAME=ALTERNATIVE)"
        yield from _indented([(name, picked, f"of {', '.join(others)}") for name, (picked, others) in choices.items()])
    if policy.params:
        yield "\nParameters (--set NAME=VALUE)"
        whole = [(p, numbers.get(p.name)) for p in policy.params]
        yield from _indented([(*parameter(p, value), whence(written, p.name, numbers)) for p, value in whole])
    if policy.signals:
        yield "\nSignals"
        rows = [(s, spell(written.signals[s.name].expr)) for s in policy.signals]
        yield from _indented([(s.name, text, f"per {word(s.granularity)}", known(s, policy)) for s, text in rows])
    yield "\nPhases"
    yield from _indented([row for p in policy.phases for row in rules_decided(p, policy)])


def whence(written: Merged, name: str, numbers: Mapping[str, float]) -> str:
    """Where the value of a parameter comes from: `--set`, the policy itself, or the place of a base."""
    if name in numbers:
        return "--set"
    span = written.params[name].span if name in written.params else None
    if span is None or span.source == written.policy.span.source:
        return "default"
    return f"default of {span.source.name}:{span.line}"


def _indented(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (f"  {line}" for line in aligned(rows))


def _when(phase: ast.PhaseDecl) -> str:
    return "to the end" if phase.when is None else when(phase.when)


def _phase(phase: ast.PhaseDecl) -> Iterator[tuple[str, str, str]]:
    """A row for the phase, and one for each of its rules of regions."""
    yield phase.name.text, _when(phase), "computes all else" if phase.regions else _does(phase.rule)
    yield from ((f"  {whose(one)}", "", _does(one.rule)) for one in phase.regions)


def _does(what: ast.WrittenRule) -> str:
    if isinstance(what, ast.ReuseInOrder):
        ways = "; otherwise ".join(_reuses(way) for way in what.ways)
        return f"{ways}; else computes it{''.join(f'; {guard(g)}' for g in what.ways[-1].guards)}"
    guards = "".join(f"; {guard(g)}" for g in what.guards) if isinstance(what, ast.ReuseRule | ast.ComputeTop) else ""
    if not isinstance(what, ast.ReuseRule):
        return "computes everything" if isinstance(what, ast.ComputeRule) else rule(what) + guards
    return f"{_reuses(what)}, else computes it{guards}"


def _reuses(way: ast.ReuseRule) -> str:
    as_ = "" if way.stand_in is None else f" as {spell(way.stand_in)}"
    return f"reuses each {way.granularity.text}{as_} while {spell(way.condition)}"


def worth_lines(plan: Plan, worth: Worth | None, on_model: bool = False) -> Iterator[str]:
    """What the plan saves: steps, and with a model tokens, FLOPs, bytes and the speed-up that they allow.

    on_model: the plan is that of a model, whose worth may be left out all the same.
    """
    steps = len(plan.cells)
    sure = sum(cell.action == "compute" for cell in plan.cells)
    perhaps = sum(cell.action == "dynamic" for cell in plan.cells)
    rows = [("steps computed", _between(sure / steps, (sure + perhaps) / steps), f"of {steps}")]
    if worth is not None:
        slow, fast = worth.speed_up
        rows.append(("tokens computed", _between(*worth.tokens), "of an active chunk"))
        rows.append(("FLOPs", _between(*worth.flops), "of a run that computes everything"))
        rows.append(("speed-up", f"{slow:.2f}" if slow == fast else f"{slow:.2f} to {fast:.2f}", "by FLOPs alone"))
        if worth.keys is not None:
            said = "none is left out at this size" if worth.keys == 1 else "of those that tokens may see"
            rows.append(("keys read", f"{worth.keys:.0%}", said))
        if worth.kept is not None:
            rows.append(("kept", f"{worth.kept / 1e6:.1f} MB", "see --stage memory"))
    yield from aligned(rows)
    by = "data decides"
    if worth is None and not on_model:
        yield "with --model NAME: tokens, FLOPs, bytes, and the steps that its timestep embedding or depth settles"
        by = "the model or data decides"
    if perhaps:
        yield f"{by} {perhaps} of the steps: `mccompile generate --compare` measures"


def _between(low: float, high: float) -> str:
    return f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"


def by_place(texts: Mapping[str, str]) -> str:
    """Texts of several transformers, each under the places of those that it is of; one text of all stands alone."""
    places: dict[str, list[str]] = {}
    for place, text in texts.items():
        places.setdefault(text, []).append(place)
    if len(places) == 1:
        return next(iter(places))
    return "".join(f"# {', '.join(of)}\n{text}" for text, of in places.items())
