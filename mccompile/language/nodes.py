"""Nodes of the syntax tree in general: what lies below one, one with changed parts, the names that one mentions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace

from mccompile.diagnostics.source import Span
from mccompile.language import ast


def children(node: object) -> Iterator[object]:
    """What lies directly below a node, or a tuple of nodes, in the order of the text; places are no part of it."""
    if isinstance(node, tuple):
        yield from node
    elif is_node(node):
        yield from (getattr(node, one.name) for one in fields(node) if one.compare)  # type: ignore[arg-type]


def is_node(value: object) -> bool:
    """Whether a value is a node of the syntax tree."""
    return is_dataclass(value) and not isinstance(value, type | Span)


def below(node: object) -> Iterator[object]:
    """A node, or the nodes of a tuple, and all nodes below, in the order of the text."""
    todo = [node]
    while todo:
        one = todo.pop()
        if is_node(one):
            yield one
        todo += reversed([*children(one)])


def declarable(node: object) -> Iterator[object]:
    """As `children`, without the name of an account, which nothing declares."""
    if isinstance(node, ast.Call) and node.function.text == "accumulate":
        return (a.value for a in node.arguments if a.name is None or a.name.text != "into")
    return children(node)


def rebuilt(node: object, change: Callable[[object], object], leave: frozenset[str] = frozenset()) -> object:
    """The node with what lies directly below it changed. leave: names of fields that stay; what is no node stays."""
    if not is_node(node):
        return node
    changed: dict[str, object] = {}
    for one in fields(node):  # type: ignore[arg-type]
        value: object = getattr(node, one.name)
        if not one.compare or one.name in leave:
            continue
        if isinstance(value, tuple):
            changed[one.name] = tuple(map(change, value))
        elif is_node(value):
            changed[one.name] = change(value)
    return replace(node, **changed)  # type: ignore[type-var]


def names_in(node: object) -> list[str]:
    """Every name that an expression or another piece of a policy refers to, in the order of the text."""
    return [one.name for one in below(node) if isinstance(one, ast.Ref)]
