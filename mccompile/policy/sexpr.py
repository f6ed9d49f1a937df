"""S-expressions of frozen dataclasses: one writer and one typed reader for the text forms of IR and plan.

A node with at most two fields is `(kind field ...)`, and a None at its end is left out. Other nodes are
`(kind field=value ...)`; there a field `name` comes first and without its key, and every None is left out. A tuple is
`[a b]`. A constant is a plain number. An operation is `(op a b)`.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cache
from typing import Literal, Union, get_args, get_origin, get_type_hints

from mccompile import ir
from mccompile.arithmetic.operations import OPERATIONS
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source, Span
from mccompile.policy.errors import TextMalformed

_TOKEN = re.compile(r'\s*(?P<token>[()\[\]=]|"(?:[^"\\]|\\.)*"|[^\s()\[\]="]+)')
_BARE = re.compile(r"[A-Za-z_][\w.\-]*\Z")
_WORDS = frozenset({"none", "true", "false"})
_SHORT = 2
DEEPEST = 200  # brackets in brackets: Python's own stack holds a few frames for each
_RENAMED: dict[type[object], str] = {
    ir.ParamRef: "param",
    ir.SignalRef: "signal",
    ir.SourceRef: "source",
    ir.ClockRef: "clock",
}


# ---- writing -----------------------------------------------------------------------------------------------
def write(value: object) -> str:
    """The text of a number, name, tuple, enum member or frozen dataclass of them."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, IntEnum):
        return value.name.lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value if _BARE.match(value) and value not in _WORDS else json.dumps(value)
    if isinstance(value, tuple):
        return f"[{' '.join(map(write, value))}]"
    if isinstance(value, ir.Const):
        return repr(float(value.value))
    if isinstance(value, ir.Apply):
        return f"({' '.join([value.op, *map(write, value.args)])})"
    return f"({' '.join([_name(type(value)), *write_fields(value)])})"


def write_fields(value: object) -> tuple[str, ...]:
    """The fields of a dataclass, as they stand in its node."""
    kind: type = type(value)
    pairs = [(name, _exact(hint, getattr(value, name))) for name, hint in _hints(kind).items()]
    if len(pairs) <= _SHORT:
        shown = pairs[:-1] if pairs and pairs[-1][1] is None else pairs
        return tuple(write(v) for _, v in shown)
    return tuple(write(v) if n == "name" else f"{n}={write(v)}" for n, v in pairs if v is not None)


def _exact(hint: object, value: object) -> object:
    """A whole number in a field of floats as the float it stands for, so that equal values read the same."""
    if hint is float and isinstance(value, int):
        return float(value)
    if hint == tuple[float, ...] and isinstance(value, tuple):
        return tuple(map(float, value))
    return value


def _name(kind: type) -> str:
    return _RENAMED.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


# ---- reading -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Atom:
    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class TreeItem:
    key: Atom | None
    value: Tree


@dataclass(frozen=True, slots=True)
class Group:
    span: Span
    opened: str
    items: tuple[TreeItem, ...]


Tree = Atom | Group


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads values of known types out of one text. `what` names the text in errors.

    Every method raises PolicyError (MC0308) at the first thing that does not read.
    """

    source: Source
    what: str

    def error(self, span: Span, cause: str) -> PolicyError:
        return PolicyError([TextMalformed(span, self.what, cause)])

    def items(self, start: int, end: int) -> tuple[TreeItem, ...]:
        """The items between two offsets of the text."""
        tokens = list(self._tokens(start, end))
        tokens.append(Atom(self.source.span(end, end), ""))
        found, rest = self._sequence(tokens, 0, 0)
        if rest != len(tokens) - 1:
            raise self.error(tokens[rest].span, "closes nothing")
        return found

    def _tokens(self, start: int, end: int) -> Iterator[Atom]:
        at = start
        while self.source.text[at:end].strip():
            match = _TOKEN.match(self.source.text, at, end)
            if match is None:
                raise self.error(self.source.span(at, end), "a quote is not closed")
            yield Atom(self.source.span(match.start("token"), match.end("token")), match["token"])
            at = match.end()

    def _sequence(self, tokens: list[Atom], at: int, depth: int) -> tuple[tuple[TreeItem, ...], int]:
        found: list[TreeItem] = []
        while tokens[at].text not in (")", "]", ""):
            key = tokens[at] if tokens[at + 1].text == "=" else None
            value, at = self._tree(tokens, at + (2 if key else 0), depth)
            found.append(TreeItem(key, value))
        return tuple(found), at

    def _tree(self, tokens: list[Atom], at: int, depth: int) -> tuple[Tree, int]:
        first = tokens[at]
        if first.text in ("(", "["):
            if depth == DEEPEST:
                raise self.error(first.span, f"more than {DEEPEST} brackets are open here")
            items, end = self._sequence(tokens, at + 1, depth + 1)
            if tokens[end].text != {"(": ")", "[": "]"}[first.text]:
                raise self.error(first.span, f"`{first.text}` is not closed")
            return Group(first.span.to(tokens[end].span), first.text, items), end + 1
        if first.text in (")", "]", "=", ""):
            raise self.error(first.span, "a value is missing here")
        return first, at + 1

    def value(self, hint: object, tree: Tree) -> object:
        """The value of type `hint` that a tree stands for."""
        if get_origin(hint) in (Union, types.UnionType):
            return self._union(get_args(hint), tree)
        if get_origin(hint) is tuple:
            return self._tuple(get_args(hint), tree)
        if get_origin(hint) is Literal:
            return self._choice(get_args(hint), tree)
        if isinstance(hint, type) and issubclass(hint, IntEnum):
            return hint[self._choice(tuple(m.name.lower() for m in hint), tree).upper()]
        scalar = _SCALARS.get(hint)
        if scalar is not None:
            return self._scalar(scalar, tree)
        assert isinstance(hint, type)
        return self._union((hint,), tree)

    def _tuple(self, inner: tuple[object, ...], tree: Tree) -> tuple[object, ...]:
        if isinstance(tree, Atom) or tree.opened != "[" or any(i.key for i in tree.items):
            raise self.error(tree.span, "a list in brackets is expected")
        return tuple(self.value(inner[0], item.value) for item in tree.items)

    def _choice(self, choices: tuple[str, ...], tree: Tree) -> str:
        text = self._string(tree) if isinstance(tree, Atom) else None
        if text not in choices:
            raise self.error(tree.span, f"one of {', '.join(c or repr(c) for c in choices)} is expected")
        return text

    def _string(self, tree: Atom) -> str:
        if not tree.text.startswith('"'):
            return tree.text
        try:
            return str(json.loads(tree.text))
        except ValueError as error:
            raise self.error(tree.span, "a text in quotes is expected, written as in JSON") from error

    def _scalar(self, scalar: Scalar, tree: Tree) -> object:
        if isinstance(tree, Atom):
            try:
                return scalar.read(self._string(tree) if scalar.name == "a name" else tree.text)
            except (ValueError, KeyError):
                pass
        raise self.error(tree.span, f"{scalar.name} is expected")

    def _union(self, kinds: tuple[object, ...], tree: Tree) -> object:
        if isinstance(tree, Atom):
            if types.NoneType in kinds and tree.text == "none":
                return None
            if ir.Const in kinds:
                return ir.Const(float(str(self._scalar(_SCALARS[float], tree))))
            plain = [k for k in kinds if k in _SCALARS or get_origin(k) is Literal]
            if plain:
                fraction = float in plain and not re.fullmatch(r"-?\d+", tree.text)
                return self.value(float if fraction else plain[0], tree)
            raise self.error(tree.span, "a node in parentheses is expected")
        lists = [k for k in kinds if get_origin(k) is tuple]
        if lists and tree.opened == "[":
            return self.value(lists[0], tree)
        if tree.opened != "(" or not tree.items or not isinstance(tree.items[0].value, Atom):
            raise self.error(tree.span, "a node in parentheses is expected")
        head = tree.items[0].value
        if head.text in OPERATIONS and ir.Apply in kinds:
            args = tuple(self.value(ir.Expr, item.value) for item in tree.items[1:])
            return ir.Apply(self._operation(head, len(args)), args)  # type: ignore[arg-type]
        for kind in kinds:
            if isinstance(kind, type) and kind is not types.NoneType and _name(kind) == head.text:
                return self.node(kind, tree.items[1:], tree.span)
        raise self.error(head.span, f"`{head.text}` cannot stand here")

    def _operation(self, head: Atom, given: int) -> str:
        wanted = len(OPERATIONS[head.text].operands)
        if given != wanted:
            raise self.error(head.span, f"`{head.text}` takes {wanted} arguments, not {given}")
        return head.text

    def node(self, kind: type, items: tuple[TreeItem, ...], span: Span) -> object:
        """The dataclass `kind` with the fields that the items give."""
        hints = _hints(kind)
        named = len(hints) > _SHORT
        values: dict[str, object] = {n: None for n, h in hints.items() if types.NoneType in get_args(h)}
        optional = bool(hints) and [*hints][-1] in values
        fits = len(hints) - optional <= len(items) <= len(hints)
        if not named and (not fits or any(i.key for i in items)):
            raise self.error(span, f"`{_name(kind)}` has {len(hints)} fields, not {len(items)}")
        names = [i.key.text if i.key else "name" for i in items] if named else [*hints][: len(items)]
        for item, name in zip(items, names, strict=True):
            if name not in hints or names.count(name) > 1:
                place = item.key.span if item.key else item.value.span
                raise self.error(place, f"not a field of `{_name(kind)}`, or given twice")
            values[name] = self.value(hints[name], item.value)
        missing = [n for n in hints if n not in values]
        if missing:
            raise self.error(span, f"`{_name(kind)}` lacks {', '.join(missing)}")
        return kind(**values)


@dataclass(frozen=True, slots=True)
class Scalar:
    name: str
    read: Callable[[str], object]


_SCALARS: dict[object, Scalar] = {
    float: Scalar("a number", float),
    int: Scalar("a whole number", int),
    bool: Scalar("true or false", {"true": True, "false": False}.__getitem__),
    str: Scalar("a name", str),
}


@cache
def _hints(kind: type) -> dict[str, object]:
    """The fields that mean something, with their types: all but the place in the policy's text."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.compare}
