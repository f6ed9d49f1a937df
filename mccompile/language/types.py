"""What the checker knows of an expression: its IR, its granularity, its unit, and when it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from mccompile import ir
from mccompile.diagnostics.source import Span
from mccompile.ir import Granularity
from mccompile.language.ast import Unit

GRANULARITIES = {granularity.name.lower(): granularity for granularity in Granularity}


def word(granularity: Granularity) -> str:
    """The granularity as the language writes it."""
    return granularity.name.lower()


@dataclass(frozen=True, slots=True)
class TypedNumber:
    """A number per cell. `constant`: known before the run. `whole`: an integer.

    `late`: read from the block output of the running step. `measured`: something of the model is in it, so that without
    a unit it is a plain number, where a literal or a parameter without a unit may count anything.
    """

    expr: ir.Expr
    granularity: Granularity = Granularity.STEP
    unit: Unit = ""
    whole: bool = False
    constant: bool = False
    late: bool = False
    measured: bool = False


@dataclass(frozen=True, slots=True)
class TypedCondition:
    """True or false per cell."""

    expr: ir.Expr
    granularity: Granularity
    constant: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class TypedTensor:
    """A tensor of the model, no number yet; `per_token` if it has a token axis. `earlier`: None: now."""

    expr: ir.SourceRef
    per_token: bool
    late: bool
    earlier: ir.PastMoment | None = None


@dataclass(frozen=True, slots=True)
class TypedKeys:
    """A number per key that attention may read: a sum of measures, each times a number that is known before the run.

    factors: by measure, and by how many keys around count (ir.KeyTerm).
    """

    factors: tuple[tuple[tuple[ir.KeyMeasure, int], TypedNumber], ...]
    at: Span


@dataclass(frozen=True, slots=True)
class Poison:
    """An expression with an error in it: silent, whatever is done with it."""


Typed = TypedNumber | TypedCondition | TypedTensor | TypedKeys | Poison
POISON = Poison()


def described(found: Typed) -> str:
    """The expression's type as a message names it."""
    match found:
        case TypedTensor(expr=source, earlier=earlier):
            filtered = "filtered " if source.gain is not None else ""
            return f"the {filtered}tensor `{source_words(source)}`{_moment(earlier)}"
        case TypedCondition():
            return "a condition"
        case TypedKeys():
            return "a number per key"
        case TypedNumber(unit=unit):
            return in_unit(unit)
        case Poison():
            return "an invalid expression"


def source_words(source: ir.SourceRef) -> str:
    """What a source is called in a policy."""
    if source.block is None:
        return source.name
    block, part = source.block.block, source.block.part
    at = f"{100 * block:g}%" if isinstance(block, float) else str(block)
    return f"blocks[{at}].{'' if part is None else f'{part}.'}residual"


def _moment(earlier: ir.PastMoment | None) -> str:
    match earlier:
        case None:
            return ""
        case ir.PastMoment("step", _):
            return " of the step before"
        case ir.PastMoment(_, 1):
            return " of the last computation"
        case ir.PastMoment(_, n):
            return f" of the last computation but {n - 1}"
        case _:
            assert_never(earlier)


def in_unit(unit: Unit) -> str:
    """A number of the unit as a message names it."""
    match unit:
        case "%":
            return "a percentage"
        case "":
            return "a number"
        case _:
            return f"a number of {unit}"


def written_at(found: TypedNumber | TypedCondition | TypedTensor | TypedKeys) -> Span:
    """The words of a typed expression."""
    return found.at if isinstance(found, TypedKeys) else place(found.expr)


def place(node: ir.Node) -> Span:
    """The words of a node that the checker made: they are always known."""
    assert node.at is not None
    return node.at
