"""The expressions of the policy AST, with nothing resolved. `mccompile.language.ast` has all of the AST."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mccompile.diagnostics.source import Span

Unit = Literal["", "steps", "frames", "%"]
CompareOp = Literal["<", "<=", ">", ">="]
ArithOp = Literal["+", "-", "*", "/", "^"]
LogicOp = Literal["and", "or"]


@dataclass(frozen=True, slots=True)
class Name:
    """A word with its place."""

    text: str
    span: Span = field(compare=False, repr=False)


# ---- expressions -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Number:
    """A number as stored (40% is 0.4) and as spelled."""

    value: float
    unit: Unit
    spelling: str = field(compare=False, repr=False)
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Ref:
    """A name in an expression: parameter, signal, source, clock value or a word that an option expects."""

    name: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BlockResult:
    """`blocks[50%].attn.residual`: names are what follows the block, one or more. block: a float is a share."""

    block: int | float
    names: tuple[Name, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A string: the name of a calibrated set, or a path."""

    value: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NumberList:
    items: tuple[Number, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Argument:
    name: Name | None
    value: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    function: Name
    arguments: tuple[Argument, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Pipe:
    """`value | f(a)`, which is `f(value, a)`."""

    value: WrittenExpr
    call: Call
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Negative:
    of: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Not:
    of: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    op: ArithOp
    left: WrittenExpr
    right: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Compare:
    op: CompareOp
    left: WrittenExpr
    right: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Logic:
    op: LogicOp
    left: WrittenExpr
    right: WrittenExpr
    span: Span = field(compare=False, repr=False)


WrittenExpr = (
    Number | Ref | BlockResult | Text | NumberList | Call | Pipe | Negative | Not | Arithmetic | Compare | Logic
)
