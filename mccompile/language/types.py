"""The types of expressions: how finely a value varies, in which unit, and when it is known."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mccompile.language.ast import Unit


class Granularity(IntEnum):
    """How finely a value varies; a coarser value stands for all finer cells that it covers."""

    STEP = 0
    CHUNK = 1
    FRAME = 2
    TOKEN = 3

    @property
    def word(self) -> str:
        return self.name.lower()


GRANULARITIES = {granularity.word: granularity for granularity in Granularity}


@dataclass(frozen=True, slots=True)
class NumberType:
    """A number per cell. `constant`: known before the run. `whole`: an integer.

    `late`: read from the block output of the running step, `account`: the accumulated sum of a cell.
    """

    granularity: Granularity = Granularity.STEP
    unit: Unit = ""
    whole: bool = False
    constant: bool = False
    late: bool = False
    account: bool = False


@dataclass(frozen=True, slots=True)
class ConditionType:
    """True or false per cell."""

    granularity: Granularity
    constant: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class SourceType:
    """A tensor of the model, no number yet; `per_token` if it has a token axis."""

    name: str
    per_token: bool
    late: bool


@dataclass(frozen=True, slots=True)
class Poison:
    """An expression with an error in it: silent, whatever is done with it."""


Type = NumberType | ConditionType | SourceType | Poison
POISON = Poison()


def described(type_: Type) -> str:
    """The type as a message names it."""
    match type_:
        case SourceType(name=name):
            return f"the tensor `{name}`"
        case ConditionType():
            return "a condition"
        case NumberType(unit="%"):
            return "a percentage"
        case NumberType(unit=""):
            return "a number"
        case NumberType(unit=unit):
            return f"a number of {unit}"
        case Poison():
            return "an invalid expression"
