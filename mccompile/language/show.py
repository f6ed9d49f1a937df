"""`show_ast`: the AST as an indented outline, one node a line, for golden files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from mccompile.language import ast
from mccompile.language.spell import quantity


def show_ast(policy: ast.PolicyAst) -> str:
    """The tree without spans: a node's plain fields behind its name, its child nodes below it."""
    return "".join(f"{line}\n" for line in _lines("", policy, 0))


def _lines(label: str, node: object, depth: int) -> Iterator[str]:
    indent = "  " * depth + (f"{label}: " if label else "")
    if not is_dataclass(node):
        yield f"{indent}{node}"
        return
    if isinstance(node, ast.Name | ast.Ref | ast.Number):
        yield f"{indent}{_leaf(node)}"
        return
    plain: list[str] = [type(node).__name__]
    below: list[tuple[str, object]] = []
    for field in fields(node):
        value: object = getattr(node, field.name)
        if not field.compare or value is None or value == ():
            continue
        if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
            plain.append(f"{field.name}={' '.join(value)}")
        elif isinstance(value, tuple):
            below += [(field.name, item) for item in value]
        elif isinstance(value, ast.Name | ast.Ref | ast.Number | str | int):
            plain.append(f"{field.name}={_leaf(value)}")
        else:
            below.append((field.name, value))
    yield indent + " ".join(plain)
    for name, child in below:
        yield from _lines(name, child, depth + 1)


def _leaf(value: ast.Name | ast.Ref | ast.Number | str | int) -> str:
    match value:
        case ast.Name(text=text):
            return text
        case ast.Ref(name=name):
            return name
        case ast.Number():
            return quantity(value)
        case str():
            return f"'{value}'"
        case _:
            return str(value)
