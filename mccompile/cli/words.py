"""Describes a policy in words: what it does, its parameters and signals, and what is decided before the first frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mccompile import ir
from mccompile.cli.terminal import aligned
from mccompile.language import ast
from mccompile.language.extend import Merged
from mccompile.language.spell import guard, rule, spell, when
from mccompile.language.types import word
from mccompile.policy.in_words import chunks, kept, known, parameter, regions, when_decided


def describe(
    written: Merged, policy: ir.PolicyIR, comments: Sequence[str], choices: Mapping[str, tuple[str, Sequence[str]]]
) -> Iterator[str]:
    """Lines: the name, then the parts in the order in which one asks for them.

    written: what `policy` was made of. choices: of each the alternative that holds, and all of them.
    """
    models = f", calibrated for {', '.join(policy.models)}" if policy.models else ""
    yield f"{policy.name}{models}"
    yield from (f"  {c.removeprefix('#').strip()}" for c in comments)
    yield "\nWhat it does"
    yield from _indented([(p.name.text, _when(p), _does(p.rule)) for p in written.phases.values()])
    for line in (*regions(policy), *chunks(policy), *kept(policy.cache)):
        yield f"  {line}"
    if choices:
        yield "\nChoices (--set NAME=ALTERNATIVE)"
        yield from _indented([(name, picked, f"of {', '.join(others)}") for name, (picked, others) in choices.items()])
    if policy.params:
        yield "\nParameters (--set NAME=VALUE)"
        yield from _indented([parameter(p) for p in policy.params])
    if policy.signals:
        yield "\nSignals"
        rows = [(s, spell(written.signals[s.name].expr)) for s in policy.signals]
        yield from _indented([(s.name, text, f"per {word(s.granularity)}", known(s, policy)) for s, text in rows])
    yield "\nPhases"
    yield from _indented([(p.name, when_decided(p, policy)) for p in policy.phases])


def _indented(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (f"  {line}" for line in aligned(rows))


def _when(phase: ast.PhaseDecl) -> str:
    return "to the end" if phase.when is None else when(phase.when)


def _does(what: ast.WrittenRule) -> str:
    guards = "".join(f"; {guard(g)}" for g in what.guards) if isinstance(what, ast.ReuseRule | ast.ComputeTop) else ""
    if not isinstance(what, ast.ReuseRule):
        return "computes everything" if isinstance(what, ast.ComputeRule) else rule(what) + guards
    return f"reuses each {what.granularity.text} while {spell(what.condition)}, else computes it{guards}"
