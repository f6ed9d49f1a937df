"""The rows of `host`: what the clock and the plan tell the decision graph of each chunk. Each row is a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

from mccompile import ir

FlagName = Literal[
    "active",  # it is decided about the chunk in this call
    "forced",  # all of it is computed, whatever the rule says
    "reused",  # nothing of it is computed, whatever the rule says
    "phase",  # the index of the phase in force
    "known",  # the plan knows the accounts
    "first",  # the chunk is the first of the video
    "tail",  # the last frame of the chunk before it has been seen
    "fresh",  # nothing is kept of the chunk
]


@dataclass(frozen=True, slots=True)
class Flag:
    """What is decided about a chunk ahead of the graph."""

    what: FlagName


@dataclass(frozen=True, slots=True)
class AccountRow:
    """An account of the chunk's cells before this step, where the plan knows it."""

    name: str


@dataclass(frozen=True, slots=True)
class ClockRow:
    """A property of the chunk's own step."""

    clock: ir.ClockName


@dataclass(frozen=True, slots=True)
class DepthRow:
    """Where the block that decides stands in the model."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """The entry of a table, or a running total, at the chunk's own step."""

    table: ir.Table | ir.Cumulative


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A change of a static source, which the plan has measured ahead of the run."""

    change: ir.Change


HostRow: TypeAlias = Flag | AccountRow | ClockRow | DepthRow | TableRow | ChangeRow


def named(rows: Sequence[HostRow]) -> tuple[str, ...]:
    """Names the rows for the text of a graph. Tables and changes have numbers."""
    tables = [row for row in rows if isinstance(row, TableRow)]
    changes = [row for row in rows if isinstance(row, ChangeRow)]

    def name(row: HostRow) -> str:
        match row:
            case Flag(what):
                return what
            case AccountRow(account):
                return account if account == "account" else f"account:{account}"
            case ClockRow(clock):
                return clock
            case DepthRow():
                return "depth"
            case TableRow():
                return f"table:{tables.index(row)}"
            case ChangeRow():
                return f"change:{changes.index(row)}"
            case _:
                assert_never(row)

    return tuple(map(name, rows))
