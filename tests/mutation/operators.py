"""The wrong changes: each one takes the syntax tree of a file and exchanges, negates or removes one thing in it.

Left alone are annotations, decorators, docstrings, the wording of messages, what only type checkers read, and `strict`
of `zip`, which only says that lists are equally long.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
CONTRARY = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
"""Whose exchange is the negation of the whole comparison."""
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.MatMult: ast.Mult, ast.BitXor: ast.BitAnd,
}  # fmt: skip
SKIPPED = {"annotation", "returns", "decorator_list", "type_params", "bases", "format_spec"}
IDENTIFIER = re.compile(r"[a-z_]{1,24}")
SHOWN = 70


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong change. scope: the function or class that it is in. number: among those that read alike there.

    at: its place among all changes of the file.
    """

    file: str
    scope: str
    operator: str
    before: str
    after: str
    number: int
    line: int
    at: int

    @property
    def key(self) -> str:
        """What names the mutant as long as its function reads as it does; lines may move."""
        return f"{self.file} {self.scope} | {self.operator} | {self.before} -> {self.after} | {self.number}"


@dataclass(frozen=True, slots=True)
class Place:
    """A node, and where it hangs in the tree. field: of the parent. index: in the field's list; -1 for no list."""

    parent: ast.AST
    field: str
    index: int
    node: ast.AST
    scope: str

    def put(self, made: ast.AST) -> None:
        """Hangs another node here."""
        ast.copy_location(made, self.node)
        if self.index < 0:
            setattr(self.parent, self.field, made)
        else:
            getattr(self.parent, self.field)[self.index] = made
        ast.fix_missing_locations(made)


def mutants(file: str, source: str) -> list[Mutant]:
    """All wrong changes of a file, in the order of its text."""
    seen: Counter[tuple[str, ...]] = Counter()
    found = []
    for at, (place, operator, made) in enumerate(_changes(ast.parse(source))):
        what = place.scope, operator, _text(place.node), _text(made)
        line = place.node.lineno  # type: ignore[attr-defined]
        found.append(Mutant(file, *what, seen[what], line, at))
        seen[what] += 1
    return found


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The tree of the file that the mutant is of, with this one change."""
    tree = ast.parse(source)
    place, _, made = next(islice(_changes(tree), mutant.at, None))
    place.put(made)
    return tree


def _changes(tree: ast.Module) -> Iterator[tuple[Place, str, ast.AST]]:
    return ((place, operator, made) for place in _places(tree, "") for operator, made in _made(place))


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _places(node: ast.AST, scope: str) -> Iterator[Place]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = f"{scope}.{node.name}" if scope else node.name
    for field, value in ast.iter_fields(node):
        if field in SKIPPED:
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not _is_left_alone(node, child):
                yield Place(node, field, index if isinstance(value, list) else -1, child, scope)
                yield from _places(child, scope)


def _is_left_alone(parent: ast.AST, node: ast.AST) -> bool:
    match node:
        case ast.Expr(ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.AnnAssign(value=None) | ast.Global():
            return True
        case ast.Subscript(ast.Name("Literal" | "Callable" | "Mapping")) | ast.Expr(ast.Call(ast.Name("assert_never"))):
            return True
        case ast.If(ast.Name("TYPE_CHECKING")) | ast.MatchValue() | ast.MatchSingleton():
            return True
        case ast.Assign([ast.Name("__slots__" | "__all__")]) | ast.keyword("strict"):
            return True
        case ast.Constant(str()):
            return isinstance(parent, ast.JoinedStr)
    return False


def _made(place: Place) -> Iterator[tuple[str, ast.AST]]:
    """The changes at one place: the name of each, and the node that stands there then."""
    node, parent = place.node, place.parent
    condition = place.field in ("test", "guard", "ifs") and not isinstance(parent, ast.Assert)
    contrary = isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], CONTRARY)
    if condition and not contrary:
        yield "negated", node.operand if _is_not(node) else ast.UnaryOp(ast.Not(), node)  # type: ignore[attr-defined,arg-type]
    match node:
        case ast.Compare():
            for at, op in enumerate(node.ops):
                ops = [*node.ops[:at], COMPARISONS[type(op)](), *node.ops[at + 1 :]]
                yield "comparison", ast.Compare(node.left, ops, node.comparators)
        case ast.BinOp() if not _is_text(node):
            yield "arithmetic", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
        case ast.UnaryOp(ast.USub(), operand) if not isinstance(operand, ast.Constant):
            yield "arithmetic", operand
        case ast.UnaryOp(ast.Not(), operand) if not condition:
            yield "boolean", operand
        case ast.BoolOp():
            yield "boolean", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.Constant(bool() as value):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield "constant", ast.Constant(value + 1)
        case ast.Constant(str() as value) if IDENTIFIER.fullmatch(value):
            yield "constant", ast.Constant("mutant")
        case ast.Return(value) if value is not None and not isinstance(value, ast.Constant):
            yield "returned", ast.Return(ast.Constant(None))
        case ast.AugAssign():
            other = ARITHMETIC[type(node.op)]()
            yield "arithmetic", ast.AugAssign(node.target, other, node.value)
            yield "removed", ast.Pass()
        case ast.Expr(ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.Raise() | ast.Delete():
            yield "removed", ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield "removed", ast.Pass()
        case ast.Continue():
            yield "loop", ast.Break()
        case ast.Break():
            yield "loop", ast.Continue()


def _is_not(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_text(node: ast.BinOp) -> bool:
    """Whether a sum joins texts, or a modulus fills one: the wording of messages."""
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str)) for s in sides
    )
