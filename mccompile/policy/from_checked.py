"""`to_ir`: from a checked policy to the IR, word for word; `load_policy` goes all the way from a name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, assert_never, cast

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import InternalError
from mccompile.diagnostics.source import Source
from mccompile.language import ast
from mccompile.language.arguments import BoundCall, as_call, bind
from mccompile.language.builtins import CLOCKS, DISTANCES, SOURCES
from mccompile.language.checked import CheckedPolicy
from mccompile.language.coefficients import SetKind, coefficient_sets
from mccompile.language.load import load_checked
from mccompile.language.masks import mask_steps
from mccompile.language.rules import clock_range

UNREACHED = 1e6
"""The upper bound of a phase with an open end: no step, timestep or sigma is as large."""

_GRANULARITIES = {granularity.name.lower(): granularity for granularity in ir.Granularity}
_ARITHMETIC: dict[str, ir.Binary] = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow"}
_COMPARISONS: dict[str, ir.Binary] = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_REDUCTIONS: dict[str, ir.Reduction] = {"mean": "mean", "largest": "max", "smallest": "min"}
_ZERO, _ONE = ir.Const(0.0), ir.Const(1.0)


def load_policy(policy: str | Path | Source) -> ir.PolicyIR:
    """The IR of a policy by shipped name, path or text; `PolicyError` with every diagnostic otherwise."""
    return to_ir(load_checked(policy))


def to_ir(checked: CheckedPolicy) -> ir.PolicyIR:
    """The IR of a checked policy; cannot fail."""
    names = _Expressions(checked)
    return ir.PolicyIR(
        name=checked.name,
        models=checked.models,
        params=tuple(
            ir.Param(param.name, param.default, param.low, param.high, param.whole, param.unit, at=param.at)
            for param in checked.params
        ),
        signals=tuple(
            ir.Signal(
                signal.name,
                names.expr(signal.expr),
                _GRANULARITIES[signal.granularity.word],
                signal.late,
                at=signal.expr.span,
            )
            for signal in checked.signals
        ),
        phases=tuple(
            ir.Phase(
                phase.name.text,
                replace(_span(phase.when, names), at=phase.name.span if phase.when is None else phase.when.span),
                replace(_rule(phase.rule, names), at=phase.rule.span),
                at=phase.name.span,
            )
            for phase in checked.phases
        ),
        regions=tuple(_region(item) for item in checked.layers),
        chunks=ir.Chunks(checked.chunks.frames, checked.chunks.pending, checked.chunks.finished),
        branches=ir.Branches(checked.branches.share_decision, checked.branches.batch),
        cache=ir.Cache(
            checked.cache.dtype,
            checked.cache.residual,
            checked.cache.device,
            checked.cache.budget,
            checked.cache.refresh_every,
            checked.cache.refresh_last,
            at=checked.cache.at,
        ),
        at=checked.at,
    )


class _Expressions:
    """Expressions under the names of one policy."""

    def __init__(self, checked: CheckedPolicy) -> None:
        self._params = {param.name for param in checked.params}
        self._signals = {signal.name for signal in checked.signals}

    def expr(self, expr: ast.Expr) -> ir.Expr:
        return replace(self._expr(expr), at=expr.span)

    def _expr(self, expr: ast.Expr) -> ir.Expr:
        match expr:
            case ast.Number(value=value):
                return ir.Const(value)
            case ast.Ref():
                return self._ref(expr)
            case ast.Negative(of=ast.Number(value=value)):
                return ir.Const(-value)
            case ast.Negative(of=of):
                return ir.Apply("neg", (self.expr(of),))
            case ast.Not(of=of):
                return ir.Apply("not", (self.expr(of),))
            case ast.Arithmetic(op=op, left=left, right=right):
                return ir.Apply(_ARITHMETIC[op], (self.expr(left), self.expr(right)))
            case ast.Compare(op=sign, left=left, right=right):
                return ir.Apply(_COMPARISONS[sign], (self.expr(left), self.expr(right)))
            case ast.Logic(op=joint, left=left, right=right):
                return ir.Apply(joint, (self.expr(left), self.expr(right)))
            case ast.Call() | ast.Pipe():
                return self._call(_bound(expr))
            case ast.Text() | ast.NumberList():
                raise InternalError(f"{type(expr).__name__} left outside of a call")
            case _:
                assert_never(expr)

    def _ref(self, ref: ast.Ref) -> ir.Expr:
        if ref.name in self._params:
            return ir.ParamRef(ref.name)
        if ref.name in self._signals:
            return ir.SignalRef(ref.name)
        if ref.name in CLOCKS:
            return ir.Clock(cast("Literal['step', 'fraction', 'timestep', 'sigma']", ref.name))
        raise InternalError(f"unresolved name `{ref.name}`")

    def _call(self, call: BoundCall) -> ir.Expr:
        name = call.function.name
        if name in DISTANCES:
            since = cast("Literal['step', 'compute']", call.word("since"))
            over = _GRANULARITIES[call.word("over")]
            return ir.Change(cast("ir.Distance", name), _source(call), since, over)
        if name == "frame_diff":
            return ir.FrameDiff(_source(call), call.word("relative") == "yes")
        if name == "table":
            return ir.Table(_numbers(call, "table", "values"))
        of = self.expr(call.values["of"])
        if name in _REDUCTIONS:
            return ir.Reduce(_REDUCTIONS[name], of, _GRANULARITIES[call.word("to")])
        match name:
            case "normalise":
                return ir.Normalise(cast("Literal['mean', 'max']", call.word("by")), of, _ZERO, _ONE)
            case "min_max":
                return ir.Normalise("min_max", of, self._argument(call, "floor"), self._argument(call, "power"))
            case "polynomial":
                return ir.Polynomial(of, _numbers(call, "polynomial", "coefficients"))
            case "accumulate":
                return ir.Accumulate(of)
            case "max" | "min":
                return ir.Apply(name, (of, self._argument(call, "other")))
            case "clamp":
                above = ir.Apply("max", (of, self._argument(call, "low")))
                return ir.Apply("min", (above, self._argument(call, "high")))
            case "abs" | "sqrt":
                return ir.Apply(name, (of,))
            case _:
                raise InternalError(f"no IR for the function `{name}`")

    def _argument(self, call: BoundCall, name: str) -> ir.Expr:
        return self.expr(call.values[name])


def _bound(expr: ast.Call | ast.Pipe) -> BoundCall:
    found = as_call(expr)
    errors: list[Diagnostic] = []
    call = None if found is None else bind(*found, expr.span, errors)
    if call is None or errors:
        raise InternalError("a call that does not bind")
    return call


def _source(call: BoundCall) -> ir.Source:
    name = call.word("of")
    if name not in SOURCES:
        raise InternalError(f"`{call.function.name}` of something else than a source")
    return ir.Source(cast("ir.SourceName", name), at=call.values["of"].span)


def _numbers(call: BoundCall, kind: SetKind, parameter: str) -> tuple[float, ...]:
    value = call.values[parameter]
    if isinstance(value, ast.Text):
        return coefficient_sets()[kind, value.value].values
    return call.number_list(parameter) or ()


def _span(when: ast.When | None, names: _Expressions) -> ir.PhaseSpan:
    match when:
        case None:
            return ir.Rest()
        case ast.ForSteps(n=n):
            return ir.ForSteps(names.expr(n))
        case ast.LastSteps(n=n):
            return ir.LastSteps(names.expr(n))
        case ast.UntilRefreshes(n=n):
            return ir.UntilRefreshes(names.expr(n))
        case ast.While():
            parts = clock_range(when)
            if parts is None:
                raise InternalError("a `while` that is no range")
            clock, low, high = parts
            what = cast("Literal['step', 'fraction', 'timestep', 'sigma']", clock.name)
            lower = _ZERO if low is None else names.expr(low)
            upper = ir.Const(UNREACHED) if high is None else names.expr(high)
            return ir.Between(ir.Clock(what, at=clock.span), lower, upper)
        case _:
            assert_never(when)


def _rule(rule: ast.Rule, names: _Expressions) -> ir.Rule:
    match rule:
        case ast.Compute():
            return ir.Compute()
        case ast.ComputeEvery(n=n):
            return ir.Every(names.expr(n))
        case ast.ComputeSteps() | ast.ComputeBins():
            return ir.StepMask(mask_steps(rule))
        case ast.ComputeTop(share=share, by=by):
            return ir.Top(names.expr(share), names.expr(by))
        case ast.Reuse():
            return _reuse(rule, names)
        case _:
            assert_never(rule)


def _reuse(rule: ast.Reuse, names: _Expressions) -> ir.Reuse:
    vote = hold = every = row = total = tokens = None
    for guard in rule.guards:
        match guard:
            case ast.Vote(share=share):
                vote = names.expr(share)
            case ast.HoldWhen(below=below):
                hold = names.expr(below)
            case ast.ComputeAllWhen(above=above):
                every = names.expr(above)
            case ast.AtMost(n=n, of="row"):
                row = names.expr(n)
            case ast.AtMost(n=n, of="total"):
                total = names.expr(n)
            case ast.AtMost(n=n):
                tokens = names.expr(n)
            case _:
                assert_never(guard)
    granularity = _GRANULARITIES[rule.granularity.text]
    return ir.Reuse(granularity, names.expr(rule.condition), vote, hold, every, row, total, tokens)


def _region(item: ast.LayersDecl) -> ir.Region:
    place = item.span if item.where is None else item.where.span
    where = ir.Integration(at=place) if item.where is None else ir.Blocks(item.where.first, item.where.last, at=place)
    keep = cast("Literal['residual', 'output', 'increment'] | None", item.keep and item.keep.text)
    return ir.Region(where, keep, at=item.span)
