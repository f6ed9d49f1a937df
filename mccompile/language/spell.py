"""Writes each piece of a policy on one line, with only the parentheses that it needs."""

from __future__ import annotations

from typing import assert_never

from mccompile.language import ast

# How tightly an expression binds; an operand that binds less tightly than its place asks for parentheses.
_PIPE, _OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _SIGNED, _POWER, _ATOM = range(10)


def spell(expr: ast.WrittenExpr) -> str:
    """The expression as text."""
    match expr:
        case ast.Number():
            return number(expr)
        case ast.Ref(name=name):
            return name
        case ast.BlockResult(block=block, names=names):
            return ".".join((f"blocks[{_bound(block)}]", *(name.text for name in names)))
        case ast.Text(value=value):
            return f'"{value}"'
        case ast.NumberList(items=items):
            return f"[{', '.join(quantity(item) for item in items)}]"
        case ast.Call(function=function, arguments=arguments):
            return f"{function.text}({', '.join(_argument(argument) for argument in arguments)})"
        case ast.Pipe(value=value, call=call):
            return f"{spell(value)} | {spell(call)}"
        case ast.Negative(of=of):
            return f"-{_within(of, _SIGNED)}"
        case ast.Not(of=of):
            return f"not {_within(of, _NOT)}"
        case ast.Arithmetic(op="^", left=left, right=right):
            return f"{_within(left, _ATOM)} ^ {_within(right, _SIGNED)}"
        case ast.Arithmetic(op=op, left=left, right=right):
            here = _binding(expr)
            return f"{_within(left, here)} {op} {_within(right, here + 1)}"
        case ast.Compare(op=sign, left=left, right=right):
            return f"{_within(left, _SUM)} {sign} {_within(right, _SUM)}"
        case ast.Logic(op=joint, left=left, right=right):
            here = _binding(expr)
            return f"{_within(left, here)} {joint} {_within(right, here + 1)}"
        case _:
            assert_never(expr)


def _binding(expr: ast.WrittenExpr) -> int:
    match expr:
        case ast.Pipe():
            return _PIPE
        case ast.Logic(op=joint):
            return _OR if joint == "or" else _AND
        case ast.Not():
            return _NOT
        case ast.Compare():
            return _COMPARE
        case ast.Arithmetic(op=op):
            return _SUM if op in "+-" else _PRODUCT if op in "*/" else _POWER
        case ast.Negative():
            return _SIGNED
        case ast.Number() | ast.Ref() | ast.BlockResult() | ast.Text() | ast.NumberList() | ast.Call():
            return _ATOM
        case _:
            assert_never(expr)


def _within(expr: ast.WrittenExpr, place: int) -> str:
    return spell(expr) if _binding(expr) >= place else f"({spell(expr)})"


def _argument(argument: ast.Argument) -> str:
    return spell(argument.value) if argument.name is None else f"{argument.name.text} = {spell(argument.value)}"


def signature(function: ast.FunctionDecl) -> str:
    """`gate(x, limit = 0.1)`."""
    written = (
        one.name.text if one.default is None else f"{one.name.text} = {spell(one.default)}"
        for one in function.parameters
    )
    return f"{function.name.text}({', '.join(written)})"


def operand(expr: ast.WrittenExpr) -> str:
    """An expression where the grammar asks for a sum: looser ones in parentheses."""
    return _within(expr, _SUM)


def number(value: ast.Number) -> str:
    return value.spelling


def quantity(value: ast.Number) -> str:
    """A number with its unit, as in a parameter."""
    if value.unit in ("", "%"):
        return value.spelling
    word = value.unit.removesuffix("s") if value.value == 1 else value.unit
    return f"{value.spelling} {word}"


def _steps(n: ast.WrittenExpr) -> str:
    one = isinstance(n, ast.Number) and n.value == 1
    return f"{operand(n)} {'step' if one else 'steps'}"


def when(span: ast.When) -> str:
    """`for 5 steps`, `until n refreshes`, `while 100 <= timestep < 800`."""
    match span:
        case ast.WhenForSteps(n=n):
            return f"for {_steps(n)}"
        case ast.WhenLastSteps(n=n):
            return f"for last {_steps(n)}"
        case ast.WhenUntilRefreshes(n=n):
            one = isinstance(n, ast.Number) and n.value == 1
            return f"until {operand(n)} {'refresh' if one else 'refreshes'}"
        case ast.While(operands=operands, ops=ops):
            rest = (f" {op} {operand(one)}" for op, one in zip(ops, operands[1:], strict=True))
            return f"while {operand(operands[0])}{''.join(rest)}"
        case _:
            assert_never(span)


def rule(what: ast.WrittenRule) -> str:
    """The rule without its guards."""
    match what:
        case ast.ComputeRule():
            return "compute"
        case ast.ComputeEvery(n=n):
            return f"compute every {_steps(n)}"
        case ast.ComputeSteps(ranges=ranges, length=length):
            return f"compute steps {_steps_listed(ranges)}" + ("" if length is None else f" of {number(length)}")
        case ast.ComputeBins(bins=bins):
            return " ".join(f"{'compute' if one.compute else 'reuse'} {number(one.n)}" for one in bins)
        case ast.ComputeTop(share=share, by=by):
            return f"compute top {operand(share)} of tokens by {spell(by)}"
        case ast.ReuseRule(granularity=granularity, stand_in=stand_in, condition=condition):
            as_ = "" if stand_in is None else f" as {spell(stand_in)}"
            return f"reuse {granularity.text}{as_} while {spell(condition)}"
        case ast.ReuseInOrder(ways=ways):
            return "  ".join(rule(way) for way in ways)
        case _:
            assert_never(what)


def whose(one: ast.NamedRule) -> str:
    """`front`, `uncond` or `uncond.front`: what a rule of a phase is called by."""
    return ".".join(name.text for name in (one.branch, one.region) if name is not None)


def _steps_listed(ranges: tuple[ast.StepRange, ...]) -> str:
    return ", ".join(_step_range(part) for part in ranges)


def _step_range(part: ast.StepRange) -> str:
    if part.last is None:
        return f"{number(part.first)}.."
    if part.last.value == part.first.value:
        return number(part.first)
    return f"{number(part.first)}..{number(part.last)}"


def guard(one: ast.Guard) -> str:
    match one:
        case ast.Vote(share=share):
            return f"vote {operand(share)} of frames"
        case ast.HoldWhen(below=below):
            return f"hold when selected < {operand(below)}"
        case ast.ComputeAllWhen(above=above):
            return f"compute all when selected > {operand(above)}"
        case ast.ComputeAllEvery(n=n):
            return f"compute all every {_steps(n)}"
        case ast.ComputeAllSteps(ranges=ranges):
            return f"compute all steps {_steps_listed(ranges)}"
        case ast.AtMost(n=n, of="row"):
            return f"at most {operand(n)} in a row"
        case ast.AtMost(n=n, of="total"):
            return f"at most {operand(n)} in total"
        case ast.AtMost(n=n):
            return f"at most {operand(n)} of tokens"
        case _:
            assert_never(one)


def where(first: int | float, last: int | float, part: str | None = None) -> str:
    """`blocks[*]`, `blocks[0..7]`, `blocks[*].attn`."""
    return f"blocks[{_range(first, last)}]" + ("" if part is None else f".{part}")


def _range(first: int | float, last: int | float) -> str:
    if (first, last) == (0, -1):
        return "*"
    if first == last and isinstance(first, int):
        return str(first)
    return f"{_bound(first)}.." if last == -1 else f"{_bound(first)}..{_bound(last)}"


def _bound(bound: int | float) -> str:
    return f"{100 * bound:g}%" if isinstance(bound, float) else str(bound)


def layer_rule(keep: ast.Name | None, stand_in: ast.WrittenExpr | None) -> str:
    """`compute`, `keep residual`, `keep residual  reuse as taylor(residual)`."""
    as_ = "" if stand_in is None else f"  reuse as {spell(stand_in)}"
    return "compute" if keep is None else f"keep {keep.text}{as_}"


def option(one: ast.Option) -> str:
    value = one.value
    match value:
        case ast.Name(text=text):
            return f"{one.name.text}: {text}"
        case ast.Number(spelling=spelling) | ast.Size(spelling=spelling):
            return f"{one.name.text}: {spelling}"
        case ast.ChunkCount(n):
            return f"{one.name.text}: {spell(n)} chunks"
        case ast.TopKeys(n, by):
            return f"{one.name.text}: top {spell(n)} chunks by {spell(by)}"
        case _:
            assert_never(value)
