"""`check`: turns the AST into IR, or reports all errors of the policy at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.language import ast
from mccompile.language.builtins import BRANCHES, RESERVED
from mccompile.language.by_depth import check_depth
from mccompile.language.choices import (
    MOST_WAYS,
    Choice,
    Picks,
    find_choices,
    in_alternative,
    resolved,
    ways,
)
from mccompile.language.effects import always_computes
from mccompile.language.errors import choosing, layers, names, values
from mccompile.language.errors.syntax import TooDeep
from mccompile.language.expressions import Elaborator
from mccompile.language.extend import Merged, chain, merge
from mccompile.language.functions import Functions, check_functions, in_call
from mccompile.language.in_extension import in_user_file
from mccompile.language.key_sums import check_whole
from mccompile.language.libraries import Loader
from mccompile.language.nearest import check_nearest
from mccompile.language.nested import check_nested
from mccompile.language.options import check_branches, check_cache, check_chunks
from mccompile.language.parameters import check_name, check_param
from mccompile.language.parse import MAX_DEPTH, keywords
from mccompile.language.regions import Reusing, check_gaps, check_names, check_use, elaborate_regions
from mccompile.language.rules import elaborate_phases, written_rules
from mccompile.language.walk import rules_of
from mccompile.language.weights import check_weights


def check(policy: ast.PolicyAst, loader: Loader, picks: Picks | None = None) -> ir.PolicyIR:
    """The policy with its bases merged in and its choices settled.

    picks: the alternatives that hold; those of the other choices are the first ones. Raises `PolicyError` with every
    MC02xx diagnostic of every alternative, in order of place; ValueError for a pick that is none of them.
    """
    try:
        return _checked(policy, chain(policy, loader), picks or {})
    except RecursionError:
        # The parser bounds the depth of one expression; signals that use signals can add up to more.
        raise PolicyError([TooDeep(policy.name.span, MAX_DEPTH)]) from None


def _checked(policy: ast.PolicyAst, policies: list[ast.PolicyAst], picks: Picks) -> ir.PolicyIR:
    """The policy as it is picked, after every combination of alternatives was checked."""
    errors: list[Diagnostic] = []
    choices = find_choices(policies, errors)
    for name, word in picks.items():
        if name not in choices or word not in choices[name].words:
            raise ValueError(f"`{name} = {word}` is no alternative of policy `{policy.name.text}`")
    count = math.prod(len(choice.alternatives) for choice in choices.values())
    if count > MOST_WAYS:
        errors.append(choosing.TooManyWays(policy.name.span, count, MOST_WAYS))
    for choice in choices.values():
        check_name(choice.name, "choice", RESERVED | keywords(), errors)
        errors += [
            names.DefinedTwice(item.name.span, "name", item.name.text, choice.name.span)
            for base in policies
            for item in base.items
            if isinstance(item, ast.ParamDecl | ast.SignalDecl) and item.name.text == choice.name.text
        ]
    check_functions(policies, frozenset(choices), errors)
    if errors:
        raise PolicyError(_in_order([in_user_file(error, policies) for error in errors], policy))
    made: list[_Made] = []
    for way in ways(choices):
        found, wrong = _elaborated(policy, [resolved(p, way) for p in policies])
        made.append((way, found, [in_user_file(error, policies) for error in wrong]))
    _report_alternatives(policy, made, choices)
    return next(found for way, found, _ in made if found is not None and way.items() >= picks.items())


_UNUSED = (values.Unused, layers.IdleRegionName)
"""Errors of a policy that has a meaning all the same."""

_Made = tuple[dict[str, str], ir.PolicyIR | None, list[Diagnostic]]


def _report_alternatives(policy: ast.PolicyAst, made: list[_Made], choices: dict[str, Choice]) -> None:
    """Raises the errors of all ways, those of some ways with their alternatives, and tells alternatives that are one.

    What one way does not use is no error where another way uses it.
    """
    errors: list[Diagnostic] = []
    for error in dict.fromkeys(error for _, _, found in made for error in found):
        wrong = [way for way, _, found in made if error in found]
        if len(wrong) == len(made):
            errors.append(error)
        elif not isinstance(error, _UNUSED):
            errors.append(in_alternative(error, wrong, choices))
    if not errors:
        policies = {tuple(way.items()): found for way, found, _ in made}
        for choice in choices.values():
            errors += _same(choice, policies)
    if errors:
        raise PolicyError(_in_order(errors, policy))


def _same(choice: Choice, made: dict[tuple[tuple[str, str], ...], ir.PolicyIR | None]) -> Iterator[Diagnostic]:
    """Alternatives of a choice that make one policy, whatever the other choices are."""
    name = choice.name.text
    for one, other in itertools.combinations(choice.words, 2):
        swapped = {tuple((n, other if n == name else w) for n, w in way): p for way, p in made.items()
                   if (name, one) in way}  # fmt: skip
        if all(made[way] == found for way, found in swapped.items()):
            yield choosing.SameAlternatives(choice.span, name, one, other)
            return


def _elaborated(policy: ast.PolicyAst, policies: list[ast.PolicyAst]) -> tuple[ir.PolicyIR | None, list[Diagnostic]]:
    """The policy and its bases, without choices, as IR, and what is wrong with it; None where that leaves no policy."""
    errors: list[Diagnostic] = []
    functions = Functions.of(policies, errors)
    merged = merge([functions.expanded(one) for one in policies], errors)
    functions.report_unused(policy)
    within = Elaborator(_params(merged, errors), merged.signals, errors, frozenset(functions.known))
    declared = list(merged.phases.values())
    phases = elaborate_phases(declared, merged.layers, policy, within)
    regions = elaborate_regions(merged.layers, within)
    cache = check_cache(merged.cache, within)
    used = frozenset(within.used)
    _check_signals(merged, within)
    made = tuple(phase for phase in phases if phase is not None)
    signals = {name: signal for name, signal in within.order.items() if signal is not None}
    reusing = [rule for phase, made in zip(declared, phases, strict=True) for rule in _reusing(phase, made, within)]
    told = check_names(merged.layers, declared, errors)
    check_use(regions, [rule for phase in made for rule in rules_of(phase)], reusing, told, signals, errors)
    check_weights(regions, made, signals, errors)
    check_depth(regions, made, errors)
    chunks = check_chunks(merged.chunks, errors)
    branches = check_branches(merged.branches, errors)
    check_gaps(regions, reusing, errors)
    check_nested(regions, made, within.ranges, errors)
    check_nearest(regions, made, within.ranges, errors)
    check_whole(cache, regions, errors)
    if branches.share_decision is not None and any(phase.branches for phase in made):
        errors.append(layers.SharedAndApart(branches.at, branches.share_decision))
    errors = [in_call(error, functions.called) for error in errors]
    if not all(isinstance(error, _UNUSED) for error in errors):
        return None, errors
    return ir.PolicyIR(
        name=policy.name.text,
        models=tuple(name.text for name in merged.models),
        params=tuple(param for param in within.params.values() if param is not None and param.name in used),
        signals=tuple(signal for signal in signals.values() if signal.name in used),
        phases=made,
        regions=regions,
        chunks=chunks,
        branches=branches,
        cache=cache,
        at=policy.name.span,
    ), errors


def _reusing(written: ast.PhaseDecl, made: ir.Phase | None, within: Elaborator) -> Iterator[Reusing]:
    """The rules of a phase that reuse something at some step, as far as an error in it leaves that open."""
    whose: list[tuple[str | None, str | None]] = [
        (None if one.branch is None else one.branch.text, None if one.region is None else one.region.text)
        for one in written.regions
    ] or [(None, None)]
    done: dict[tuple[str | None, str | None], ir.Rule] = {}
    parts: list[ir.Phase | ir.BranchRule] = [] if made is None else [made, *(made.branches or ())]
    for of in parts:
        branch = of.branch if isinstance(of, ir.BranchRule) else None
        done[branch, None] = of.rule
        for one in of.regions or ():
            done[branch, one.region] = one.rule
    for (branch, region), rule in zip(whose, written_rules(written), strict=True):
        known = done.get((branch, region))
        if not (isinstance(rule, ast.ComputeRule) if known is None else always_computes(known, within.ranges)):
            yield Reusing(branch, region, rule.span)


def _params(merged: Merged, errors: list[Diagnostic]) -> dict[str, ir.Param | None]:
    reserved = RESERVED | keywords()
    for declaration in _declarations(merged):
        what = "parameter" if isinstance(declaration, ast.ParamDecl) else "signal"
        check_name(declaration.name, what, reserved, errors)
    for item in merged.layers:
        if item.name is not None:
            check_name(item.name, "region", reserved | set(BRANCHES), errors)
    return {name: check_param(param, errors) for name, param in merged.params.items()}


def _declarations(merged: Merged) -> list[ast.ParamDecl | ast.SignalDecl]:
    return [*merged.params.values(), *merged.signals.values()]


def _check_signals(merged: Merged, within: Elaborator) -> None:
    """The signals that no rule reached, and the declarations of the policy itself that nothing uses."""
    for signal in merged.signals:
        within.signal(signal)
    for declaration in _declarations(merged):
        name = declaration.name
        if name.text in merged.own and name.text not in within.used:
            what = "parameter" if isinstance(declaration, ast.ParamDecl) else "signal"
            base = tuple(d.name.text for d in _declarations(merged) if d.name.text not in merged.own)
            within.report(values.Unused(name.span, what, name.text, base))


def _in_order(errors: list[Diagnostic], policy: ast.PolicyAst) -> list[Diagnostic]:
    """The policy's own errors first, then those of its bases, each by place."""

    def place(error: Diagnostic) -> tuple[bool, str, int, str]:
        assert error.span is not None
        source = error.span.source
        return source != policy.span.source, source.name, error.span.start, error.code

    return sorted(dict.fromkeys(errors), key=place)
