"""What lowering establishes: which blocks run under which region, and the graphs that decide and observe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mccompile import ir
from mccompile.capture.part import Part
from mccompile.capture.types import CapturedModel, Refusal
from mccompile.lowering.decide import DecideSpec
from mccompile.lowering.observe import ObserveSpec
from mccompile.lowering.sources import Located
from mccompile.policy.groups import ALL


@dataclass(frozen=True, slots=True)
class Piece:
    """What a block of a lowered model is of the captured one: a whole block, or some sublayers of one.

    block: counted from 0 in the captured model. sublayers: () for a whole block.
    """

    block: int
    sublayers: tuple[ir.SublayerName, ...]


@dataclass(frozen=True, slots=True)
class LoweredRegion:
    """A region of the policy on this model: blocks first..last, both included, that run together.

    They are counted in the lowered model, where a block may be split into its sublayers.

    keep: None if the blocks are always computed, because the policy says so or names them in no region. "increment":
    of its streams nothing is kept, but what the model, or the sampler's step, makes of them in the end.
    pairs: (stream in, stream out) for each stream that leaves the region: the residual is out - in. A stream
    without a counterpart of its shape keeps its output (stream in is then ""). forecast: what stands in for the kept
    result on reuse; None: that itself. of_rules: what rules let stand in instead. group: the regions that it decides
    with (policy/groups.py). nearest: the source by which tokens that are not computed find the computed one whose
    results they take; nothing is kept then. inside: what leaves is the output of a sublayer, which the next region adds
    to the stream.
    """

    first: int
    last: int
    keep: Literal["residual", "output", "increment"] | None
    pairs: tuple[tuple[str, str], ...]
    forecast: ir.Forecast | None = None
    group: str = ALL
    inside: bool = False
    of_rules: tuple[ir.Forecast, ...] = ()
    nearest: ir.SourceName | None = None

    @property
    def forecasts(self) -> tuple[ir.Forecast, ...]:
        """All that may stand in for the kept result."""
        return (*(() if self.forecast is None else (self.forecast,)), *self.of_rules)

    @property
    def depth(self) -> int:
        """How many of the last results are kept of each stream."""
        return max((len(row) for forecast in self.forecasts for row in forecast.weights), default=1)

    @property
    def passes(self) -> int:
        """How many of the last steps' values are kept of each stream, computed or standing in."""
        return max((len(row) for forecast in self.forecasts for row in forecast.passed or ()), default=0)


@dataclass(frozen=True, slots=True)
class RowForms:
    """What computes selected rows. partial, once and allocate hold one part for each kind of block.

    gather: takes the index and sources; gives the rows of shared values, positions, and picks (lowering/picks.py).
    partial: takes the selected rows of streams and shared values, positions, buffers, weights, and what passes have
    added: bounds of prefixes, sources and picks, values of `once`. It gives streams, and writes the selected rows of
    the buffers.
    once: takes shared values and weights; gives what the prompt alone determines. None: there is no such value.
    allocate: takes streams and shared values; gives buffers of zeros in the form in which they are kept.
    prefixes: masks replaced by bounds (lowering/prefixes.py), to be proved again at each new shape.
    """

    gather: Part
    partial: tuple[Part, ...]
    once: tuple[Part | None, ...]
    allocate: tuple[Part, ...]
    prefixes: frozenset[str]


@dataclass(frozen=True, slots=True)
class LoweredModel:
    """A captured model under a policy, ready for a backend.

    captured: the model as it runs, with blocks that the policy splits into sublayers cut into pieces. whole: as it was
    captured. pieces: for each block that runs what it is of the whole model.
    plain: for each kind of block, its form on all rows without buffers. rows: None where selections of tokens are
    refused; decisions are then per step and `refusals` says why. static: sources that the clock and the request's
    constants determine. modulated: block 0 up to its modulated input, if the policy reads it. decides: the decision
    graph of each view (policy/groups.py), in order of depth; None where the clock decides. together: the guidance
    branch with whose calls the other one's are run as one batch, if any.
    """

    captured: CapturedModel
    whole: CapturedModel
    pieces: tuple[Piece, ...]
    policy: ir.PolicyIR
    regions: tuple[LoweredRegion, ...]
    located: Mapping[ir.SourceName, Located]
    static: frozenset[str]
    plain: tuple[Part, ...]
    postlude: Part
    rows: RowForms | None
    modulated: Part | None
    decides: Mapping[str, DecideSpec | None]
    observe: ObserveSpec | None
    together: str | None
    refusals: tuple[Refusal, ...]
