"""What lowering establishes: which blocks run under which region, and the graphs that decide and observe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import fx

from mccompile import ir
from mccompile.capture.types import CapturedModel, Refusal
from mccompile.lowering.decide import DecideSpec
from mccompile.lowering.observe import ObserveSpec
from mccompile.lowering.sources import Located
from mccompile.lowering.strip import Slim


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks first..last (both included) that run together; `keep` is None where they are always computed.

    pairs: (stream in, stream out) for each stream that leaves the segment: the residual is out - in. A stream
    without a counterpart of its shape keeps its output (stream in is then "").
    """

    first: int
    last: int
    keep: Literal["residual", "output", "increment"] | None
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RowForms:
    """What computes selected rows.

    gather: (index, *sources) -> (*gathered, *row vectors of captured.row_keys, *picks)
    coarse: (shared value, the smaller value that blocks pick its rows from), one pick each (lowering/coarse.py)
    partial: per kind, (*streams, *shared, *rows, *buffers, *weights, bounds, *picks, *once) -> (*streams,)
    once: per kind, (*streams, *shared, *rows, *buffers, *weights) -> (*once,), of the prompt alone; or None
    allocate: per kind, (*streams, *shared) -> (*buffers,), zeros in the form in which they are kept (lowering/kept.py)
    prefixes: masks replaced by `bounds` (lowering/attention.py), to be proved again at each new shape.
    """

    gather: Slim
    gathered: tuple[str, ...]
    coarse: tuple[tuple[str, str], ...]
    partial: tuple[Slim, ...]
    once: tuple[Slim | None, ...]
    allocate: tuple[fx.GraphModule, ...]
    prefixes: frozenset[str]


@dataclass(frozen=True, slots=True)
class LoweredModel:
    """A captured model under a policy, ready for a backend.

    plain: per kind, the block without buffers, (*streams, *shared, *weights) -> (*streams,). masks: shared values that
    plain blocks may be given as additive masks where they are boolean ones. rows: None where
    selections of tokens are refused; decisions are then per step and `refusals` says why. static: sources that
    the clock and the request's constants determine. modulated: block 0 up to its modulated input, if the
    policy reads it. together: the guidance branch with whose calls the other one's are run as one batch, if any.
    """

    captured: CapturedModel
    policy: ir.PolicyIR
    segments: tuple[Segment, ...]
    located: Mapping[ir.SourceName, Located]
    static: frozenset[str]
    plain: tuple[Slim, ...]
    masks: tuple[str, ...]
    rows: RowForms | None
    modulated: Slim | None
    decide: DecideSpec | None
    observe: ObserveSpec | None
    together: str | None
    refusals: tuple[Refusal, ...]
