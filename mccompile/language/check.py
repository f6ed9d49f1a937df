"""`check`: from the AST to a policy that means something, or to all of its errors at once."""

from __future__ import annotations

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.language import ast
from mccompile.language.builtins import RESERVED
from mccompile.language.checked import CheckedParam, CheckedPolicy, CheckedSignal
from mccompile.language.errors import values
from mccompile.language.errors.syntax import TooDeep
from mccompile.language.expressions import Typing
from mccompile.language.extend import Loader, Merged, chain, merge
from mccompile.language.options import check_branches, check_cache, check_chunks
from mccompile.language.parameters import check_name, check_param
from mccompile.language.parse import MAX_DEPTH, keywords
from mccompile.language.regions import by_depth, check_layers, check_use
from mccompile.language.rules import check_phases
from mccompile.language.types import POISON, NumberType, Poison


def check(policy: ast.PolicyAst, loader: Loader) -> CheckedPolicy:
    """The policy with its bases merged in; `PolicyError` with every MC02xx diagnostic, in order of place."""
    try:
        return _checked(policy, chain(policy, loader))
    except RecursionError:
        # The parser bounds the depth of one expression; signals that use signals can add up to more.
        raise PolicyError([TooDeep(policy.name.span, MAX_DEPTH)]) from None


def _checked(policy: ast.PolicyAst, policies: list[ast.PolicyAst]) -> CheckedPolicy:
    errors: list[Diagnostic] = []
    merged = merge(policies, errors)
    params = _check_params(merged, errors)
    typing = Typing(_param_types(params), _ranges(params), merged.signals, errors)
    phases = list(merged.phases.values())
    check_phases(phases, policy, typing)
    used = frozenset(typing.used)
    _check_signals(merged, typing)
    check_layers(merged.layers, errors)
    check_use(merged.layers, phases, typing.probes, errors)
    chunks = check_chunks(merged.chunks, errors)
    cache = check_cache(merged.cache, errors)
    branches = check_branches(merged.branches, errors)
    if errors:
        raise PolicyError(_in_order(errors, policy))
    return CheckedPolicy(
        name=policy.name.text,
        models=tuple(name.text for name in merged.models),
        params=tuple(param for param in params.values() if param is not None and param.name in used),
        signals=_signals(merged, typing, used),
        phases=tuple(phases),
        layers=tuple(by_depth(merged.layers)),
        chunks=chunks,
        cache=cache,
        branches=branches,
        at=policy.name.span,
    )


def _check_params(merged: Merged, errors: list[Diagnostic]) -> dict[str, CheckedParam | None]:
    reserved = RESERVED | keywords()
    for declaration in _declarations(merged):
        what = "parameter" if isinstance(declaration, ast.ParamDecl) else "signal"
        check_name(declaration.name, what, reserved, errors)
    return {name: check_param(param, errors) for name, param in merged.params.items()}


def _declarations(merged: Merged) -> list[ast.ParamDecl | ast.SignalDecl]:
    return [*merged.params.values(), *merged.signals.values()]


def _param_types(params: dict[str, CheckedParam | None]) -> dict[str, NumberType | Poison]:
    return {
        name: POISON if param is None else NumberType(unit=param.unit, whole=param.whole, constant=True)
        for name, param in params.items()
    }


def _ranges(params: dict[str, CheckedParam | None]) -> dict[str, tuple[float, float]]:
    return {name: (param.low, param.high) for name, param in params.items() if param is not None}


def _check_signals(merged: Merged, typing: Typing) -> None:
    """The signals that no rule reached, and the declarations of the policy itself that nothing uses."""
    for signal in merged.signals:
        typing.signal(signal)
    for declaration in _declarations(merged):
        name = declaration.name
        if name.text in merged.own and name.text not in typing.used:
            what = "parameter" if isinstance(declaration, ast.ParamDecl) else "signal"
            typing.report(values.Unused(name.span, what, name.text))


def _signals(merged: Merged, typing: Typing, used: frozenset[str]) -> tuple[CheckedSignal, ...]:
    return tuple(
        CheckedSignal(name, merged.signals[name].expr, found.granularity, found.late)
        for name, found in typing.order.items()
        if name in used and isinstance(found, NumberType)
    )


def _in_order(errors: list[Diagnostic], policy: ast.PolicyAst) -> list[Diagnostic]:
    """The policy's own errors first, then those of its bases, each by place."""

    def place(error: Diagnostic) -> tuple[bool, str, int, str]:
        assert error.span is not None
        source = error.span.source
        return source != policy.span.source, source.name, error.span.start, error.code

    return sorted(dict.fromkeys(errors), key=place)
