"""The names that an expression mentions."""

from __future__ import annotations

from typing import assert_never

from mccompile.language import ast


def names_in(expr: ast.WrittenExpr) -> list[str]:
    """Every name that an expression refers to, in the order of the text."""
    match expr:
        case ast.Ref(name=name):
            return [name]
        case ast.Call(arguments=arguments):
            return [name for argument in arguments for name in names_in(argument.value)]
        case ast.Pipe(value=value, call=call):
            return [*names_in(value), *names_in(call)]
        case ast.Negative(of=of) | ast.Not(of=of):
            return names_in(of)
        case (
            ast.Arithmetic(left=left, right=right)
            | ast.Compare(left=left, right=right)
            | ast.Logic(left=left, right=right)
        ):
            return [*names_in(left), *names_in(right)]
        case ast.Number() | ast.Text() | ast.NumberList():
            return []
        case _:
            assert_never(expr)
