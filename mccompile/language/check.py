"""`check`: turns the AST into IR, or reports all errors of the policy at once."""

from __future__ import annotations

from collections.abc import Iterator

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.language import ast
from mccompile.language.builtins import RESERVED
from mccompile.language.effects import always_computes
from mccompile.language.errors import values
from mccompile.language.errors.syntax import TooDeep
from mccompile.language.expressions import Elaborator
from mccompile.language.extend import Loader, Merged, chain, merge
from mccompile.language.options import check_branches, check_cache, check_chunks
from mccompile.language.parameters import check_name, check_param
from mccompile.language.parse import MAX_DEPTH, keywords
from mccompile.language.regions import Reusing, check_names, check_use, elaborate_regions
from mccompile.language.rules import elaborate_phases, written_rules
from mccompile.language.walk import rules_of


def check(policy: ast.PolicyAst, loader: Loader) -> ir.PolicyIR:
    """The policy with its bases merged in; `PolicyError` with every MC02xx diagnostic, in order of place."""
    try:
        return _elaborated(policy, chain(policy, loader))
    except RecursionError:
        # The parser bounds the depth of one expression; signals that use signals can add up to more.
        raise PolicyError([TooDeep(policy.name.span, MAX_DEPTH)]) from None


def _elaborated(policy: ast.PolicyAst, policies: list[ast.PolicyAst]) -> ir.PolicyIR:
    errors: list[Diagnostic] = []
    merged = merge(policies, errors)
    within = Elaborator(_params(merged, errors), merged.signals, errors)
    declared = list(merged.phases.values())
    phases = elaborate_phases(declared, policy, within)
    regions = elaborate_regions(merged.layers, within)
    used = frozenset(within.used)
    _check_signals(merged, within)
    made = tuple(phase for phase in phases if phase is not None)
    signals = {name: signal for name, signal in within.order.items() if signal is not None}
    reusing = [rule for phase, made in zip(declared, phases, strict=True) for rule in _reusing(phase, made, within)]
    check_use(regions, [rule for phase in made for rule in rules_of(phase)], reusing, signals, errors)
    check_names(merged.layers, declared, errors)
    chunks = check_chunks(merged.chunks, errors)
    cache = check_cache(merged.cache, errors)
    branches = check_branches(merged.branches, errors)
    if errors:
        raise PolicyError(_in_order(errors, policy))
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
    )


def _reusing(written: ast.PhaseDecl, made: ir.Phase | None, within: Elaborator) -> Iterator[Reusing]:
    """The rules of a phase that reuse something at some step, as far as an error in it leaves that open."""
    regions: list[str | None] = [*(one.region.text for one in written.regions)] or [None]
    rules = written_rules(written)
    done: tuple[ir.Rule | None, ...] = (None,) * len(rules)
    if made is not None:
        done = tuple(one.rule for one in made.regions or ()) or (made.rule,)
    for region, rule, known in zip(regions, rules, done, strict=True):
        if not (isinstance(rule, ast.ComputeRule) if known is None else always_computes(known, within.ranges)):
            yield Reusing(region, rule.span)


def _params(merged: Merged, errors: list[Diagnostic]) -> dict[str, ir.Param | None]:
    reserved = RESERVED | keywords()
    for declaration in _declarations(merged):
        what = "parameter" if isinstance(declaration, ast.ParamDecl) else "signal"
        check_name(declaration.name, what, reserved, errors)
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
            within.report(values.Unused(name.span, what, name.text))


def _in_order(errors: list[Diagnostic], policy: ast.PolicyAst) -> list[Diagnostic]:
    """The policy's own errors first, then those of its bases, each by place."""

    def place(error: Diagnostic) -> tuple[bool, str, int, str]:
        assert error.span is not None
        source = error.span.source
        return source != policy.span.source, source.name, error.span.start, error.code

    return sorted(dict.fromkeys(errors), key=place)
