"""The expressions of a policy: what varies during a run, and what is made of it. The upper half of `ir.py`.

Every node knows the words of the policy that it came from. Source of each meaning: docs/language.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, get_args

from mccompile.arithmetic.fitted import Fitted
from mccompile.arithmetic.operations import Operator
from mccompile.diagnostics.source import Span


@dataclass(frozen=True, slots=True)
class Node:
    """`at`: the policy's own words, None where it was read from its text. Neither equality nor its text has it."""

    at: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


class Granularity(IntEnum):
    """How finely a value or a decision varies. A coarser value broadcasts to a finer one."""

    STEP = 0
    CHUNK = 1
    FRAME = 2
    TOKEN = 3


SourceName = Literal[
    "time_embedding",  # embedding of the timestep (the value that the final norm consumes), static
    "modulation",  # modulation of the blocks derived from the timestep (e0 of Wan), static
    "latent",  # the model's latent input
    "embedded",  # the latent after patch embedding = input of the first block
    "modulated_input",  # what enters the first self-attention
    "input",  # what enters the layers that are decided about
    "block_output",  # output of the policy's cached region, computed or reused; known after the step
    "probe",  # residual (output - input) of the always-computed blocks before the cached region
    "probe_output",  # output of these blocks
    "output",  # what the model returns; only that of earlier steps can be read
    "block",  # the residual of one block, or of a sublayer of it; only that of its computations can be read
]
TOLD_AFTER: tuple[SourceName, ...] = ("output", "block")  # known when a step has run, and not before its decisions
SublayerName = Literal["attn", "cross", "ffn"]  # self-attention, attention to the text, feed-forward
SUBLAYERS: tuple[SublayerName, ...] = get_args(SublayerName)
ClockName = Literal["step", "fraction", "timestep", "sigma"]
Distance = Literal["rel_l1", "l1", "l2", "cosine", "deviation"]  # against an earlier value; the last: within itself
Norm = Literal["mean", "max", "min_max"]
Reduction = Literal["mean", "max", "min"]


@dataclass(frozen=True, slots=True)
class Const(Node):
    value: float


@dataclass(frozen=True, slots=True)
class ParamRef(Node):
    name: str


@dataclass(frozen=True, slots=True)
class SignalRef(Node):
    name: str


@dataclass(frozen=True, slots=True)
class ClockRef(Node):
    what: ClockName  # of the chunk's own step: index from 0, index / steps, timestep (0..1000) or sigma (0..1)


@dataclass(frozen=True, slots=True)
class Depth(Node):
    """Where the block that decides stands: 0 for the model's first block, 1 for its last. Of rules of such blocks."""


@dataclass(frozen=True, slots=True)
class Table(Node):
    values: tuple[float, ...]  # [i] at the chunk's step i; for another number of steps, the nearest entry


@dataclass(frozen=True, slots=True)
class BlockRef(Node):
    """One block of the model, or a sublayer of it. A float is a share of the depth: the block that begins there."""

    block: int | float
    part: SublayerName | None = None


@dataclass(frozen=True, slots=True)
class SourceRef(Node):
    name: SourceName
    gain: Expr | None = None  # of each frequency along frames, rows and columns: the source is filtered by it
    block: BlockRef | None = None  # of the source "block": which one it is


@dataclass(frozen=True, slots=True)
class Frequency(Node):
    """Within a gain alone: cycles per token along one axis, 0 to 0.5."""


@dataclass(frozen=True, slots=True)
class PastMoment(Node):
    since: Literal["step", "compute"]  # one step ago, or the n-th last computation of the cell
    n: int


@dataclass(frozen=True, slots=True)
class Change(Node):
    """How far a source b moved to a, one number per cell of `over` (rel_l1 = mean|a-b| / (mean|b| + 1e-8))."""

    distance: Distance
    of: SourceRef
    since: Literal["step", "compute", "zero"]  # b: one step ago, at the n-th last computation, or 0
    over: Granularity
    n: int | None = None  # None: the last computation
    a: PastMoment | None = None  # None: a is the source now


@dataclass(frozen=True, slots=True)
class FrameDiff(Node):
    """Motion of a source per token: mean_c|h[f]-h[f-1]| / (mean_c|h[f-1]| + 1e-8) (MotionCache)."""

    of: SourceRef
    relative: bool  # False: the plain difference, as MAGI-1's variant on latents
    a: PastMoment | None = None  # None: the source now; then no chunk sees the one before it


@dataclass(frozen=True, slots=True)
class Similarity(Node):
    """Of each token the largest cosine between it and an anchor of its chunk, -1 to 1; of an anchor itself -1.

    Anchors are the tokens of every `stride`-th row and every `stride`-th column of each frame, from the first on.
    """

    of: SourceRef
    stride: int


@dataclass(frozen=True, slots=True)
class Normalise(Node):
    """Per frame: mean: m/mean; max: m/max; min_max: floor + (1-floor) * ((m-min)/(max-min)) ** power."""

    norm: Norm
    of: Expr
    floor: Expr
    power: Expr


@dataclass(frozen=True, slots=True)
class Polynomial(Node):
    """Coefficients highest power first. `origin`, as `at`, is not part of the meaning; warnings need it."""

    of: Expr
    coefficients: tuple[float, ...]
    origin: Fitted | None = field(default=None, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Accumulate(Node):
    """An account of a cell: the sum of `of` over the steps since the cell was last computed, including this step.

    into: its name. A rule that reads it adds to it; all rules share the accounts of one name.
    """

    of: Expr
    into: str = "account"


@dataclass(frozen=True, slots=True)
class Kept(Node):
    """`of` at the step when the cell was last computed; n-th last. With fewer computations, at the first of them."""

    of: Expr
    n: int


@dataclass(frozen=True, slots=True)
class Before(Node):
    of: Expr  # its value one step ago; at a chunk's first step, its value there


@dataclass(frozen=True, slots=True)
class Cumulative(Node):
    """The sum or the product of `of` over the chunk's own steps up to this one. Only the clock and tables are in it."""

    how: Literal["sum", "product"]
    of: Expr


@dataclass(frozen=True, slots=True)
class Average(Node):
    """The mean of `of` over the chunk's last n own steps, this one included; while there are fewer, over those."""

    of: Expr
    n: int


@dataclass(frozen=True, slots=True)
class Smooth(Node):
    """by * (its value one step ago) + (1 - by) * of; at a chunk's first step, `of`."""

    of: Expr
    by: Expr


@dataclass(frozen=True, slots=True)
class Stairs(Node):
    """A step function: the entry of `values` whose number is how many of the ascending `limits` are at most `of`."""

    of: Expr
    limits: tuple[float, ...]
    values: tuple[float, ...]  # one more than limits


@dataclass(frozen=True, slots=True)
class SpectralWeight(Node):
    """What the n-th last kept result is worth in a Chebyshev series of this degree, fitted to the last `over` of them.

    The fit is over the run's steps, by least squares with `ridge` times the sum of its squared coefficients added.
    """

    n: int
    degree: int
    over: int
    ridge: Expr


@dataclass(frozen=True, slots=True)
class Around(Node):
    """Of each token, what its frame has around it: at most `by` rows and `by` columns away, itself included."""

    how: Literal["max", "mean"]
    of: Expr
    by: int


@dataclass(frozen=True, slots=True)
class Area(Node):
    """1 for tokens whose centre lies in a rectangle of the frame, 0 elsewhere: from..to as shares of its sides."""

    rows: tuple[float, ...]
    columns: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reduce(Node):
    how: Reduction
    of: Expr
    to: Granularity


@dataclass(frozen=True, slots=True)
class Apply(Node):
    op: Operator  # of the table in arithmetic/operations.py, which says what each means
    args: tuple[Expr, ...]


Expr = (
    Const | ParamRef | SignalRef | ClockRef | Depth | Table | SourceRef | Frequency | Change | FrameDiff | Similarity
    | Normalise | Polynomial | Accumulate | Kept | Before | Cumulative | Average | Smooth | Stairs | SpectralWeight
    | Around | Area | Reduce | Apply
)
