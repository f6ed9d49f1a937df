"""The policy IR: all that a policy can say, on one page. Frozen data, no torch, no methods.

Read it as a grammar. For every (branch, step, chunk, region, token) a policy says compute, reuse or skip;
`phases` say when, `regions` say which layers, `chunks` say what happens before and after a chunk's own steps.
Numbers a user may change are `Param` references everywhere: they enter compiled graphs as tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from mccompile.arithmetic.fitted import Fitted
from mccompile.arithmetic.operations import Operator
from mccompile.diagnostics.source import Span


@dataclass(frozen=True, slots=True)
class Node:
    """`at`: the policy's own words, for errors; None where it was read from its text. Equality does not look at it."""

    at: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


class Granularity(IntEnum):
    """How finely a value or a decision varies. A coarser value broadcasts to a finer one."""

    STEP = 0
    CHUNK = 1
    FRAME = 2
    TOKEN = 3


# ---- expressions -----------------------------------------------------------------------------------------
SourceName = Literal[
    "time_embedding",  # embedding of the timestep (the value that the final norm consumes), static
    "modulation",  # modulation of the blocks derived from the timestep (e0 of Wan), static
    "latent",  # the model's latent input
    "embedded",  # the latent after patch embedding = input of the first block
    "modulated_input",  # what enters the first self-attention
    "input",  # what enters the layers
    "block_output",  # output of the policy's cached region, computed or reused; known after the step
    "probe",  # residual (output - input) of the always-computed blocks before the cached region
    "probe_output",  # output of these blocks
    "output",  # what the model returns; only that of earlier steps can be read
]
ClockName = Literal["step", "fraction", "timestep", "sigma"]
Distance = Literal["rel_l1", "l1", "l2", "cosine"]  # against the value at the previous step or computation
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
class Table(Node):
    values: tuple[float, ...]  # [i] at the chunk's step i; for another number of steps, the nearest entry


@dataclass(frozen=True, slots=True)
class SourceRef(Node):
    name: SourceName
    gain: Expr | None = None  # of each frequency along frames, rows and columns: the source is filtered by it


@dataclass(frozen=True, slots=True)
class Frequency(Node):
    """Within a gain: cycles per token along one axis, 0 to 0.5."""


@dataclass(frozen=True, slots=True)
class PastMoment(Node):
    since: Literal["step", "compute"]
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
    """An account of a cell: the sum of `of` since the cell was last computed, this step included. Rules share it."""

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
class Reduce(Node):
    how: Reduction
    of: Expr
    to: Granularity


@dataclass(frozen=True, slots=True)
class Apply(Node):
    op: Operator  # of the table in arithmetic/operations.py, which says what each means
    args: tuple[Expr, ...]


Expr = (
    Const | ParamRef | SignalRef | ClockRef | Table | SourceRef | Frequency | Change | FrameDiff | Normalise
    | Polynomial | Accumulate | Kept | Before | Cumulative | Reduce | Apply
)


# ---- declarations ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Param(Node):
    """A number that a user may set; integer when `whole`. Always low <= default <= high."""

    name: str
    default: float
    low: float
    high: float
    whole: bool
    unit: Literal["", "steps", "frames", "%"]  # a "%" is stored as a share in 0..1


@dataclass(frozen=True, slots=True)
class Signal(Node):
    name: str
    expr: Expr
    granularity: Granularity
    late: bool  # depends on block_output: known only after the region ran, used by the next step


# ---- rules: what a phase does with the cached regions -----------------------------------------------------
@dataclass(frozen=True, slots=True)
class Compute(Node):
    pass


@dataclass(frozen=True, slots=True)
class AllAt(Node):
    every: Expr | None  # all is computed at the phase's first step and every n-th after it
    steps: tuple[int, ...]  # or at these own steps of the chunk


@dataclass(frozen=True, slots=True)
class Forecast(Node):
    """What stands in for the kept result on reuse: a weighted sum of the last kept results, the latest first."""

    weights: tuple[tuple[Expr, ...], ...]  # [c - 1]: at most c numbers, while c results are kept; the last for more


@dataclass(frozen=True, slots=True)
class Reuse(Node):
    """Reuse a cell while `condition` holds, compute it otherwise. Guards apply in this order."""

    granularity: Granularity
    condition: Expr
    vote: Expr | None  # a spatial position is computed in all frames if more than this share of its frames is
    hold_below: Expr | None  # 0 < computed share of the chunk < this: compute nothing, leave the accounts
    all_above: Expr | None  # computed share of the chunk > this: compute the whole chunk
    max_consecutive: Expr | None  # reuses in a row of one cell before it must be computed
    max_total: Expr | None  # reuses of one cell in the whole run
    max_reused: Expr | None  # at most this share of a chunk's tokens is reused; the rest by highest account
    all_at: AllAt | None = None
    stand_ins: tuple[Forecast | None, ...] | None = None  # of alternatives (language/ways.py); None: what layers say


@dataclass(frozen=True, slots=True)
class Every(Node):
    n: Expr  # compute the first step of the phase and each n-th step after it; reuse the others


@dataclass(frozen=True, slots=True)
class StepMask(Node):
    compute: tuple[bool, ...]  # by the chunk's own step, must cover the run


@dataclass(frozen=True, slots=True)
class Top(Node):
    """Compute the top `share` of the tokens of a chunk by `by`, reuse the others. Guards as those of Reuse."""

    share: Expr
    by: Expr
    max_consecutive: Expr | None = None
    max_total: Expr | None = None
    all_at: AllAt | None = None


Rule = Compute | Reuse | Every | StepMask | Top


@dataclass(frozen=True, slots=True)
class ForSteps(Node):
    n: Expr


@dataclass(frozen=True, slots=True)
class UntilRefreshes(Node):
    n: Expr  # until n steps of this phase in which at least one token of the chunk was computed


@dataclass(frozen=True, slots=True)
class Between(Node):
    clock: ClockRef  # while low <= value < high of the chunk's own clock
    low: Expr
    high: Expr


@dataclass(frozen=True, slots=True)
class LastSteps(Node):
    n: Expr  # the chunk's last n steps, whatever phase they would be in


@dataclass(frozen=True, slots=True)
class Rest(Node):
    pass


PhaseSpan = ForSteps | UntilRefreshes | Between | LastSteps | Rest


@dataclass(frozen=True, slots=True)
class RegionRule(Node):
    region: str  # the name of the regions whose rule it is
    rule: Rule


@dataclass(frozen=True, slots=True)
class BranchRule(Node):
    """What a phase says for one guidance branch, in place of what it says for the others."""

    branch: str
    rule: Rule
    regions: tuple[RegionRule, ...] | None = None


@dataclass(frozen=True, slots=True)
class Phase(Node):
    """`rule` is that of every region which `regions` does not name, and of every branch which `branches` does not."""

    name: str
    span: PhaseSpan
    rule: Rule
    regions: tuple[RegionRule, ...] | None = None
    branches: tuple[BranchRule, ...] | None = None


@dataclass(frozen=True, slots=True)
class Blocks(Node):
    """Blocks first..last, both included; negative counts from the end. A float is a share of the depth."""

    first: int | float
    last: int | float


SublayerName = Literal["attn", "cross", "ffn"]  # self-attention, attention to the text, feed-forward


@dataclass(frozen=True, slots=True)
class Sublayers(Node):
    """One sublayer of each of these blocks: what a block adds to its streams between two of its residual adds."""

    blocks: Blocks
    part: SublayerName


@dataclass(frozen=True, slots=True)
class Integration(Node):
    """The whole model together with the sampler's step. The increment of the latent is kept (MAGI-1)."""


@dataclass(frozen=True, slots=True)
class WholeModel(Node):
    """All that the model computes; the residual is output - latent, the gap output - that of the other branch."""


@dataclass(frozen=True, slots=True)
class Region(Node):
    """Layers. Those of one name, or of none, decide together. keep: for reuse; None: they are always computed."""

    where: Blocks | Sublayers | Integration | WholeModel
    keep: Literal["residual", "output", "increment", "gap"] | None
    forecast: Forecast | None = None  # None: the kept result itself
    name: str | None = None
    each: bool | None = None  # every block decides apart


@dataclass(frozen=True, slots=True)
class Chunks(Node):
    """The life of a chunk. refresh: one last clean pass, then keep K/V (exact); keep: K/V as they are."""

    frames: int | None  # latent frames per chunk; None: as the model says
    pending: Literal["skip", "compute"]
    finished: Literal["keep", "refresh", "compute"]


@dataclass(frozen=True, slots=True)
class Branches(Node):
    share_decision: str | None  # guidance branch whose decision the others follow
    batch: bool  # both branches in one forward where their inputs can be foreseen


KeptDtype = Literal["auto", "model", "float32", "bfloat16", "float16", "float8"]  # float8: e4m3, a scale per row
KeptDevice = Literal["auto", "model", "cpu"]


@dataclass(frozen=True, slots=True)
class Cache(Node):
    """The dtype and device of kept tensors. "auto": those of the model, or cheaper ones if the budget requires it."""

    dtype: KeptDtype  # of keys and values
    residual: KeptDtype  # of what regions keep
    device: KeptDevice
    budget: int | None  # bytes on the model's device, of all guidance branches of a request
    refresh_every: int | None  # recompute all K/V of a chunk at least every k steps
    refresh_last: bool  # compute every token on the chunk's last step


@dataclass(frozen=True, slots=True)
class PolicyIR(Node):
    name: str
    models: tuple[str, ...]  # calibrated for; empty = any
    params: tuple[Param, ...]
    signals: tuple[Signal, ...]  # in order of use
    phases: tuple[Phase, ...]  # in order
    regions: tuple[Region, ...]  # in order of depth; blocks named by none are computed
    chunks: Chunks
    branches: Branches
    cache: Cache
