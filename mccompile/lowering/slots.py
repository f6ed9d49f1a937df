"""What goes into and comes out of the decision and observe graphs: each place is a value, not a text to be parsed.

A slot that is kept between calls (`KeptSlot`) is also the key of its tensor in a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mccompile import ir


@dataclass(frozen=True, slots=True)
class Host:
    """What the clock and the plan know of each chunk, [B, K, G]."""

    name = "host"


@dataclass(frozen=True, slots=True)
class Params:
    """The values of the policy's parameters, one vector."""

    name = "params"


@dataclass(frozen=True, slots=True)
class Places:
    """The rows and columns of a frame, in tokens, as the sizes of a tensor [rows, columns]."""

    name = "places"


@dataclass(frozen=True, slots=True)
class Now:
    """A source as it is in this call, in its own layout."""

    source: ir.SourceName

    @property
    def name(self) -> str:
        return f"now:{self.source}"


@dataclass(frozen=True, slots=True)
class LikeAnchors:
    """How like each token is to the anchors of its chunk in this call, [B, G, F, P]; see ir.Similarity."""

    source: ir.SourceName
    stride: int

    @property
    def name(self) -> str:
        return f"alike:{self.source}:{self.stride}"


@dataclass(frozen=True, slots=True)
class Mask:
    """Which tokens are computed, [B, G, F, P] bool."""

    name = "mask"


@dataclass(frozen=True, slots=True)
class DecidedBy:
    """What each chunk is decided by, [B, K, G] float32: its accounts and signals, and which guards acted."""

    name = "measured"


@dataclass(frozen=True, slots=True)
class ChosenWay:
    """Which alternative of its rule says what stands in for a cell if it is reused, [B, G, F, P] uint8, from 0."""

    name = "way"


@dataclass(frozen=True, slots=True)
class Count:
    """A number per cell, [B, G, F, P]: one of its accounts, its reuses in a row, its reuses in the run."""

    of: Literal["account", "streak", "total"]
    into: str = "account"  # which account

    @property
    def name(self) -> str:
        return f"state:{self.of}" if self.into == "account" else f"state:{self.of}:{self.into}"


@dataclass(frozen=True, slots=True)
class SourceBefore:
    """A source as it was at the step before, or at the chunk's n-th last computation; [B, G, F, P, C].

    filter: the number of the filter that it went through, counted from 1 in its graph; 0 for none.
    """

    source: ir.SourceName
    since: Literal["step", "compute"]
    n: int = 1
    filter: int = 0

    @property
    def name(self) -> str:
        nth = f":{self.n}" if self.n > 1 else ""
        return f"before:{self.source}:{self.since}{nth}" + (f":filter{self.filter}" if self.filter else "")


@dataclass(frozen=True, slots=True)
class Past:
    """A number of the rules at an earlier step, [B, G, F, P]: entry `number` of those that the graph looks back at.

    back: 0 for the step before, n for the n-th last step that computed the cell. cell: what counts as a cell.
    """

    number: int
    back: int
    cell: ir.Granularity

    @property
    def name(self) -> str:
        return f"past:{self.number}:{self.back}:{self.cell.name.lower()}"


@dataclass(frozen=True, slots=True)
class Running:
    """What a running mean takes from earlier steps, [B, G, F, P]: entry `number` of those of the graph.

    back: its operand that many steps ago; 0 for its own value one step ago.
    """

    number: int
    back: int

    @property
    def name(self) -> str:
        return f"running:{self.number}:{self.back}"


@dataclass(frozen=True, slots=True)
class Tail:
    """The last frame of each chunk of a source, that of the chunk before the first in front; [B, G + 1, P, C]."""

    source: ir.SourceName

    @property
    def name(self) -> str:
        return f"tail:{self.source}"


@dataclass(frozen=True, slots=True)
class Late:
    """A late signal as the step before left it, [B, G, F, P]."""

    signal: str

    @property
    def name(self) -> str:
        return f"late:{self.signal}"


KeptSlot = Count | SourceBefore | Past | Running | Tail | Late
Slot = Host | Params | Places | Now | LikeAnchors | Mask | DecidedBy | ChosenWay | KeptSlot


def identifier(slot: Slot) -> str:
    """The name of the slot's placeholder in a graph."""
    return slot.name.replace(":", "__")
