"""What capture establishes about a model. Each type is final, frozen, and says what has been proved.

A captured model is cut at its transformer blocks into four parts, all torch.fx graphs over the same values:

    prelude   user inputs            -> entry streams, shared values (modulation, rotary tables, text, masks)
    gather    index, sources         -> the rows of the shared values that a selection of tokens needs
    block i   streams, shared values -> streams (one `full` and one `partial` form per kind of block)
    postlude  streams, shared values -> the model's outputs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx
from torch.utils._pytree import TreeSpec


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that could not be proved, where, and why; it never stops a coarser use of the model."""

    site: str  # "blocks.3.attn1", "conv3d_1", ...
    reason: str


@dataclass(frozen=True, slots=True)
class Along:
    """A value with one entry a sample along `axis`."""

    axis: int


@dataclass(frozen=True, slots=True)
class Count:
    """A value that is the number of samples."""


@dataclass(frozen=True, slots=True)
class Tangled:
    """A value in whose size the number of samples is mixed with other numbers."""

    size: str  # the symbolic size, as torch writes it


Batch: TypeAlias = Along | Count | Tangled


@dataclass(frozen=True, slots=True)
class Port:
    """A value that crosses the boundary of a part."""

    name: str  # of the fx node in the captured graph
    token_axis: int | None  # the axis that carries tokens
    rows: str  # what its rows are: "" none, "video" exactly the tokens, else a key such as "11+video"
    depends: frozenset[str]  # names of the user inputs whose *data* it depends on; empty: shape only
    batch: Batch | None = None  # how it holds samples, if it does


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """Keys or values of one attention that a partial run keeps."""

    name: str  # e.g. "attn1.k0"
    token_axis: int
    rows: str  # as Port.rows: which rows the axis holds


@dataclass(frozen=True, slots=True)
class BlockKind:
    """Blocks with the same graph up to their weights.

    full:     (*streams, *shared, *buffers, *weights) -> (*streams,)        writes all rows of the buffers
    partial:  (*streams, *shared, *rows, *buffers, *weights) -> (*streams,) writes the selected rows
    allocate: (*streams, *shared) -> (*buffers,)                            zeros, of the shapes `full` expects
    In `partial`, streams and shared values hold the selected rows only (`*shared` as the gather part returns
    them), `rows` are int64 vectors: for each key of `row_keys` the positions along the full axis.
    """

    full: fx.GraphModule
    partial: fx.GraphModule | None  # None: refused, see CapturedModel.refusals
    allocate: fx.GraphModule
    row_keys: tuple[str, ...]
    buffers: tuple[BufferSpec, ...]


@dataclass(frozen=True, slots=True)
class BlockSite:
    """One block of the model, in order of depth."""

    index: int
    path: str  # "blocks.3"
    kind: int  # index into CapturedModel.kinds
    streams_in: tuple[str, ...]  # value names; outputs of earlier blocks, or among `entry`
    streams_out: tuple[str, ...]
    shared: tuple[str, ...]  # prelude values, in the order of the kind's placeholders
    weights: tuple[str, ...]  # qualified names of parameters, buffers and constants of the captured module


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Frame-major layout of the token axis: token = (frame * height + y) * width + x.

    `frames` etc. are taken from the shape of the user input `source`: size // patch along `axes`.
    """

    source: str
    axes: tuple[int, int, int]
    patch: tuple[int, int, int]

    def of(self, shape: torch.GraphSize) -> tuple[int, int, int]:
        """(frames, height, width) in tokens for the latent shape given."""
        frames, height, width = (shape[a] // p for a, p in zip(self.axes, self.patch, strict=True))
        return frames, height, width


@dataclass(frozen=True, slots=True)
class Assembled:
    """A model cut into prelude, gather, blocks and postlude, not yet run. See the module docstring.

    prelude:  (*user inputs) -> (*entry, *shared)
    gather:   (index, *sources) -> (*gathered, *rows)     rows as in `row_keys`; None: refused
    postlude: (*exit, *shared, *user inputs) -> flat outputs
    `index` is an int64 vector of selected token positions, distinct, any order.

    `gathered` names the shared values that blocks read; `gather` returns their rows. It reads `sources`:
    prelude values (tensors or ints) that `split_prelude` computes. A source is the shared value itself, or
    the smaller value of which it is an expansion (per-frame modulation repeated over tokens).
    """

    module: fx.GraphModule  # the normalised exported graph; owns the weights
    model_class: str
    inputs: tuple[str, ...]  # names of the user inputs that are tensors or symbolic ints, in placeholder order
    constants: tuple[tuple[str, object], ...]  # every other leaf of the call, baked into the graph
    in_spec: TreeSpec  # of (args, kwargs) at capture
    out_spec: TreeSpec
    prelude: fx.GraphModule
    gather: fx.GraphModule | None
    postlude: fx.GraphModule
    entry: tuple[str, ...]  # streams that the prelude makes
    exit: tuple[str, ...]  # streams that the postlude reads
    shared: tuple[Port, ...]
    sources: tuple[Port, ...]
    gathered: tuple[str, ...]
    streams: tuple[Port, ...]  # values between blocks that carry state: input of the first block first
    row_keys: tuple[str, ...]
    kinds: tuple[BlockKind, ...]
    blocks: tuple[BlockSite, ...]
    refusals: tuple[Refusal, ...]
    samples: tuple[str, ...]  # inputs with one entry a sample along their first axis, if their number may vary


@dataclass(frozen=True, slots=True)
class CapturedModel(Assembled):
    """An assembled model that was run at both sizes: its outputs are the model's, its rows those of the full forms.

    What the runs disproved is gone, with a Refusal in its place.
    """

    grid: TokenGrid | None
    unbatched: str  # why the number of samples may not vary; "" where it may
    fixed: tuple[tuple[str, int], ...]  # then the first sizes of inputs, which no call may change
