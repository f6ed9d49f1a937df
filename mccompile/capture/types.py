"""What capture establishes about a model. Each type is final, frozen, and says what has been proved.

A captured model is cut at its transformer blocks into four parts, all torch.fx graphs over the same values:

    prelude   user inputs            -> entry streams, shared values (modulation, rotary tables, text, masks)
    gather    index, sources         -> the rows of the shared values that a selection of tokens needs
    block i   streams, shared values -> streams (one `full` and one `partial` form per kind of block)
    postlude  streams, shared values -> the model's outputs
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import fx
from torch.utils._pytree import TreeSpec

from mccompile.capture.arguments import Written
from mccompile.capture.part import Part, Shared, Stream, Weight
from mccompile.capture.places import counts_among, counts_placed, leading, starts_of


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
class SampleCount:
    """A value that is the number of samples, or a multiple of it: `each` for one sample.

    each: None where it is another size of the call, such as the number of frames.
    """

    each: int | None = 1


@dataclass(frozen=True, slots=True)
class Tangled:
    """A value in whose size the number of samples is mixed with other numbers."""

    size: str  # the symbolic size, as torch writes it


Batch: TypeAlias = Along | SampleCount | Tangled


@dataclass(frozen=True, slots=True)
class Beside:
    """How many other rows lie in front of the video tokens of an axis, and behind them; None: a number that varies."""

    before: int | None
    after: int | None

    def start(self, rows: int, tokens: int) -> int:
        """The row of the first of `tokens` video tokens among `rows`, where one of the two numbers is known."""
        assert self.located
        return self.before if self.before is not None else rows - tokens - (self.after or 0)

    @property
    def located(self) -> bool:
        """Whether the tokens can be found when their number is known."""
        return self.before is not None or self.after is not None

    def tokens(self, rows: int) -> int | None:
        """The number of video tokens among `rows`, where the numbers of the others are known."""
        return None if self.before is None or self.after is None else rows - self.before - self.after


@dataclass(frozen=True, slots=True)
class Port:
    """A value that crosses the boundary of a part."""

    name: str  # of the fx node in the captured graph
    token_axis: int | None  # the axis that carries tokens
    rows: str  # what its rows are: "" none, "video" exactly the tokens, else a key such as "11+video"
    depends: frozenset[str]  # names of the user inputs whose *data* it depends on; empty: shape only
    batch: Batch | None = None  # how it holds samples, if it does
    beside: Beside | None = None  # where the video tokens lie on that axis, if all of them do, in one piece


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """Keys or values of one attention that a partial run keeps."""

    name: str  # e.g. "attn1.k0"
    token_axis: int
    rows: str  # as Port.rows: which rows the axis holds


@dataclass(frozen=True, slots=True)
class ModulatedInput:
    """What enters the query projection of a block's first attention."""

    node: str  # in the graph of the full form
    token_axis: int
    beside: Beside


@dataclass(frozen=True, slots=True)
class BlockKind:
    """Blocks with the same graph up to their weights.

    full:     takes streams, shared values, buffers and weights; gives streams. It writes all rows of the buffers.
    partial:  takes positions too, one vector for each key of `row_keys`. Streams and shared values hold the selected
              rows only, as the gather part gives them. It writes the selected rows of the buffers.
    allocate: takes streams and shared values; gives the buffers, zeros of the shapes that `full` expects.
    """

    full: Part
    partial: Part | None  # None: refused, see CapturedModel.refusals
    allocate: Part
    row_keys: tuple[str, ...]
    buffers: tuple[BufferSpec, ...]
    modulated: ModulatedInput | str  # or the reason why there is none
    mixing: tuple[Refusal, ...] = ()  # what the partial form computes over all tokens, and why


@dataclass(frozen=True, slots=True)
class BlockSite:
    """One block of the model, in order of depth."""

    index: int
    path: str  # "blocks.3"
    kind: int  # index into CapturedModel.kinds
    streams_in: tuple[str, ...]  # value names; outputs of earlier blocks, or among `entry`
    streams_out: tuple[str, ...]
    continues: tuple[str, ...]  # for each of these the stream that it continues, with something added; "" for none
    shared: tuple[str, ...]  # prelude values, in the order in which the kind's `full` takes them
    weights: tuple[str, ...]  # qualified names of parameters, buffers and constants of the captured module


def names_at(kind: BlockKind, site: BlockSite) -> Mapping[Stream | Shared | Weight, str]:
    """What the streams, shared values and weights of the parts of `kind` are called at one of its blocks."""
    entering = [o for o in kind.full.takes if isinstance(o, Stream)]
    leaving = [o for o in kind.full.gives if isinstance(o, Stream)]
    shared = [o for o in kind.full.takes if isinstance(o, Shared)]
    weights = [o for o in kind.full.takes if isinstance(o, Weight)]
    operands: tuple[Stream | Shared | Weight, ...] = (*entering, *leaving, *shared, *weights)
    names = (*site.streams_in, *site.streams_out, *site.shared, *site.weights)
    return dict(zip(operands, names, strict=True))


def root_of(blocks: Sequence[BlockSite], stream: str, among: Container[str]) -> str:
    """As `Assembled.root_of`."""
    before = {made: source for b in blocks for made, source in zip(b.streams_out, b.continues, strict=True) if source}
    while stream not in among and stream in before:
        stream = before[stream]
    return stream


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Frame-major layout of the token axis: token = (frame * height + y) * width + x.

    `frames` etc. are taken from the shape of the user input `source`: size // patch along `axes`. An image has no
    axis of frames (None): it is one frame. apart: the first stream has the frames of all samples along its first axis,
    [samples * frames, height * width, channels].
    """

    source: str
    axes: tuple[int | None, int, int]
    patch: tuple[int, int, int]
    apart: bool = False

    def together(self, value: torch.Tensor, inputs: Mapping[str, object]) -> torch.Tensor:
        """A value with an entry for each frame of each sample as one with those of a sample behind each other."""
        frames = self.of_call(inputs)[0] if self.apart else 1
        latent = inputs[self.source]
        assert isinstance(latent, torch.Tensor)
        alone = not self.apart or value.dim() < 2 or value.size(0) != latent.size(0) * frames
        return value if alone else value.unflatten(0, (-1, frames)).flatten(1, 2)

    def of(self, shape: torch.Size) -> tuple[int, int, int]:
        """(frames, height, width) in tokens for the latent shape given."""
        sizes = (1 if a is None else shape[a] // p for a, p in zip(self.axes, self.patch, strict=True))
        frames, height, width = sizes
        return frames, height, width

    def of_call(self, inputs: Mapping[str, object]) -> tuple[int, int, int]:
        """(frames, height, width) in tokens for the inputs of a call, by name."""
        latent = inputs[self.source]
        assert isinstance(latent, torch.Tensor)
        return self.of(latent.shape)

    def behind(self, inputs: Mapping[str, object]) -> int:
        """How many tokens lie behind the grid: none, every token is of it."""
        return 0


class _Flat:
    """What grids of a flat latent have in common: its entries are its tokens, frame by frame, along one axis."""

    __slots__ = ()
    source: str
    axis: int

    @abstractmethod
    def of_call(self, inputs: Mapping[str, object]) -> tuple[int, int, int]:
        """(frames, height, width) in tokens for the inputs of a call, by name."""

    def behind(self, inputs: Mapping[str, object]) -> int:
        """How many tokens of the latent lie behind the grid: of what the model is given beside what it makes."""
        latent = inputs[self.source]
        assert isinstance(latent, torch.Tensor)
        return latent.shape[self.axis] - prod(self.of_call(inputs))

    @property
    def axes(self) -> tuple[int]:
        """The axis of the latent along which the tokens of all frames, rows and columns lie."""
        return (self.axis,)

    @property
    def patch(self) -> tuple[int, int, int]:
        """How many frames, rows and columns of the latent make one token."""
        return 1, 1, 1


@dataclass(frozen=True, slots=True)
class ToldGrid(_Flat):
    """The frame-major grid of a flat latent `source` along `axis`, as the call tells it."""

    source: str
    sizes: tuple[str | int, str | int, str | int]  # frames, height, width: names of inputs that are numbers, or numbers
    axis: int = 1

    def of_call(self, inputs: Mapping[str, object]) -> tuple[int, int, int]:
        """(frames, height, width) in tokens for the inputs of a call, by name."""
        found = [inputs[s] if isinstance(s, str) else s for s in self.sizes]
        frames, height, width = (s for s in found if isinstance(s, int))
        return frames, height, width


@dataclass(frozen=True, slots=True)
class PlacedGrid(_Flat):
    """The frame-major grid of a flat latent `source`, as the positions of its tokens tell it, the input `places`.

    References and keyframes that the model is given lie behind it, and are no part of the grid.
    places: [..., tokens, 3], or [..., 3, tokens] if `last`; with a further last axis of 2, both ends of each token.
    among: where the tokens lie on that axis, if others have positions too; then they lie along `axis` of the latent.
    """

    source: str
    places: str
    last: bool
    axis: int = 1
    among: Beside = Beside(0, 0)

    def of_call(self, inputs: Mapping[str, object]) -> tuple[int, int, int]:
        """(frames, height, width) in tokens for the inputs of a call, by name.

        Tokens that form no grid at their positions (keyframes in front of the video) are one row of one frame.
        """
        places = inputs[self.places]
        assert isinstance(places, torch.Tensor)
        rows = starts_of(places).shape[-1 if self.last else -2]
        if self.among == Beside(0, 0):
            return counts_placed(places, self.last) or (1, 1, rows)
        latent = inputs[self.source]
        assert isinstance(latent, torch.Tensor)
        tokens = latent.shape[self.axis]
        return counts_among(places, self.last, self.among.start(rows, tokens), tokens) or (1, 1, tokens)


@dataclass(frozen=True, slots=True)
class OneFrame(_Flat):
    """A flat latent `source` along `axis` whose first tokens are an image that is made; `places` has their positions.

    Images that an editing model is given lie behind it, and are no part of the grid. places: [..., rows, 2 to 4].
    among: where all tokens of the latent lie among the rows.
    """

    source: str
    axis: int
    places: str
    among: Beside = Beside(0, 0)

    def of_call(self, inputs: Mapping[str, object]) -> tuple[int, int, int]:
        """(1, 1, tokens) for the inputs of a call, by name."""
        latent, places = inputs[self.source], inputs[self.places]
        assert isinstance(latent, torch.Tensor)
        assert isinstance(places, torch.Tensor)
        tokens, rows = latent.shape[self.axis], places.shape[-2]
        return 1, 1, leading(places, self.among.start(rows, tokens), tokens)


AnyGrid: TypeAlias = TokenGrid | ToldGrid | PlacedGrid | OneFrame


@dataclass(frozen=True, slots=True)
class Assembled:
    """A model cut into prelude, gather, blocks and postlude, not yet run. See the module docstring.

    prelude:  takes the user inputs; gives the streams of `entry` and the values `shared`.
    gather:   takes the index (distinct positions in any order) and the sources; gives the rows of the values
              `gathered` and the positions of `row_keys`. None: refused.
    postlude: takes the streams of `exit`, the values `shared` and the user inputs; gives the flat outputs.

    `gathered` names the shared values that blocks read. The gather part reads `sources`:
    prelude values (tensors or ints) that `split_prelude` computes. A source is the shared value itself, or
    the smaller value of which it is an expansion (per-frame modulation repeated over tokens).
    """

    module: fx.GraphModule  # the normalised exported graph; owns the weights
    model_class: str
    inputs: tuple[str, ...]  # names of the user inputs that are tensors or symbolic ints, in placeholder order
    constants: tuple[tuple[str, object], ...]  # every other leaf of the call, baked into the graph
    in_spec: TreeSpec  # of (args, kwargs) at capture
    out_spec: TreeSpec
    prelude: Part
    gather: Part | None
    postlude: Part
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
    samples: tuple[str, ...]  # inputs with entries for each sample along their first axis, if their number may vary
    opaque: str  # why the parts run the model's own code, without a row form; "" where they are graphs of its operators

    @property
    def sample_axis(self) -> int:
        """The axis of the samples in the stream that enters the first block; the first one where tokens were found."""
        ports = [p for p in self.streams if p.name in self.entry]
        found = any(p.beside is not None for p in ports)
        batch = next(p.batch for p in ports if p.name == self.entry[0])
        return batch.axis if isinstance(batch, Along) and not found else 0

    def root_of(self, stream: str, among: Container[str]) -> str:
        """The first stream among some that a stream continues, block by block; all of these have its shape.

        The stream itself, or the last one found, where none of them is among these.
        """
        return root_of(self.blocks, stream, among)


@dataclass(frozen=True, slots=True)
class CapturedModel(Assembled):
    """An assembled model that was run at both sizes: its outputs are the model's, its rows those of the full forms.

    What the runs disproved is gone, with a Refusal in its place.
    """

    grid: AnyGrid | None
    unbatched: str  # why the number of samples may not vary; "" where it may
    fixed: tuple[tuple[str, int], ...]  # then the first sizes of inputs, which no call may change
    dtypes: tuple[tuple[str, str], ...] = ()  # of the inputs that are tensors: the graph has no casts from others
    moving: tuple[str, ...] = ()  # inputs that each step changes beside the latent: one of sound, a second timestep
    guards: tuple[str, ...] = ()  # what export demands of a call's sizes, if the proved calls fulfil it (guards.py)
    written: tuple[Written, ...] = ()  # numbers that the forward writes into its arguments, as the outputs' last list
    each: tuple[str, ...] = ()  # inputs with an entry for each sample, of a model of one sample whose samples run alone
    lists: tuple[str, ...] = ()  # arguments that are lists of numbers of any length, one input each
