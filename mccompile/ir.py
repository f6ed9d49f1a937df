"""The policy IR: all that a policy can say but its expressions (`expression.py`). Frozen data, no torch, no methods.

Read it as a grammar. For every (branch, step, chunk, region, token) a policy says compute, reuse or skip;
`phases` say when, `regions` say which layers, `chunks` say what happens before and after a chunk's own steps.
Numbers a user may change are `Param` references everywhere: they enter compiled graphs as tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mccompile.expression import (
    SUBLAYERS,
    TOLD_AFTER,
    Accumulate,
    Apply,
    Area,
    Around,
    Average,
    Before,
    BlockRef,
    Change,
    ClockName,
    ClockRef,
    Const,
    Cumulative,
    Depth,
    Distance,
    Expr,
    FrameDiff,
    Frequency,
    Granularity,
    Kept,
    Node,
    Norm,
    Normalise,
    ParamRef,
    PastMoment,
    Polynomial,
    Reduce,
    Reduction,
    SignalRef,
    Similarity,
    Smooth,
    SourceName,
    SourceRef,
    SpectralWeight,
    Stairs,
    SublayerName,
    Table,
)

__all__ = [  # an expression's names are names of the IR
    "SUBLAYERS", "TOLD_AFTER",
    "Accumulate", "AllAt", "Apply", "Area", "Around", "Average", "Bands", "Before", "Between", "BlockRef", "Blocks",
    "BranchRule", "Branches", "Cache", "Change", "Chunks", "ClockName", "ClockRef", "Compute", "Const", "Cumulative",
    "Depth", "Distance", "Every", "Expr", "ForSteps", "Forecast", "FrameDiff", "Frequency", "Granularity",
    "Integration", "Kept", "KeptDevice", "KeptDtype", "KeyChoice", "KeyMeasure", "KeySum", "KeyTerm", "KeyWindow",
    "LastSteps", "Node", "Norm", "Normalise", "Param",
    "ParamRef", "PastMoment", "Phase", "PhaseSpan", "PolicyIR", "Polynomial", "Reduce", "Reduction", "Region",
    "RegionRule", "Rest", "Reuse", "Rule", "Signal", "SignalRef", "Similarity", "Smooth", "SourceName", "SourceRef",
    "SpectralWeight",
    "Stairs", "StepMask", "SublayerName", "Sublayers", "Table", "Top", "UntilRefreshes", "WholeModel",
]  # fmt: skip


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
    """Steps at which a rule computes all: the phase's first and every n-th after it, or own steps of the chunk."""

    every: Expr | None
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forecast(Node):
    """What stands in for the kept result on reuse: a weighted sum of the last kept results, the latest first.

    weights[c - 1]: while c results are kept, at most c numbers that the clock settles; with more, the last entry holds.
    passed[c - 1]: then, what is added of the values one step ago, two steps ago, ..., computed or standing in.
    """

    weights: tuple[tuple[Expr, ...], ...]
    passed: tuple[tuple[Expr, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Bands(Node):
    """What stands in for what is kept of the whole model: its frequencies along rows and columns, weighted.

    Of each frame, those within a circle are low: at most `radius` times the shorter side whole waves across the frame,
    rounded down. `high` is the weight of all others. The clock settles both.
    """

    low: Expr
    high: Expr
    radius: Expr


@dataclass(frozen=True, slots=True)
class Reuse(Node):
    """Reuse a cell while `condition` holds, compute it otherwise. Guards apply in this order.

    stand_ins: of several alternatives in order, what stands in for the kept result under each; None: what the layers
    say. `condition` is then the `or` of theirs, `(or (or first second) third)`: language/ways.py takes it apart. A cell
    that a guard reuses though no condition holds has the last alternative's.
    """

    granularity: Granularity
    condition: Expr
    vote: Expr | None  # a spatial position is computed in all frames if more than this share of its frames is
    hold_below: Expr | None  # 0 < computed share of the chunk < this: compute nothing, leave the accounts
    all_above: Expr | None  # computed share of the chunk > this: compute the whole chunk
    max_consecutive: Expr | None  # reuses in a row of one cell before it must be computed
    max_total: Expr | None  # reuses of one cell in the whole run
    max_reused: Expr | None  # at most this share of a chunk's tokens is reused; the rest by highest account
    all_at: AllAt | None = None
    stand_ins: tuple[Forecast | None, ...] | None = None


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
    """Layers under one decision. keep=None: always computed. Otherwise what is kept for reuse, and what stands in.

    name: regions of one name decide together, apart from all others; so do those without a name. nearest: a token that
    is not computed takes what the computed token of its chunk gets in this very step that is most like it by the cosine
    of this source. Then nothing is kept.
    """

    where: Blocks | Sublayers | Integration | WholeModel
    keep: Literal["residual", "output", "increment", "gap"] | None
    forecast: Forecast | None = None  # None: the kept result itself
    name: str | None = None
    each: bool | None = None  # every block decides apart
    bands: Bands | None = None  # of the whole model: what stands in for what is kept of it
    depth: float | None = None  # of one of `each` in a model: where its block stands, 0 first to 1 last
    nearest: SourceRef | None = None


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


@dataclass(frozen=True, slots=True)
class KeyWindow(Node):
    """What attention reads of what a token may see: the keys of the last chunks, the token's own among them.

    chunks: how many, at least 1. sink: of the first chunks, which are read as well. Both are whole numbers.
    """

    chunks: Expr
    sink: Expr


KeyMeasure = Literal["attention", "redundancy"]


@dataclass(frozen=True, slots=True)
class KeyTerm(Node):
    """A measure of a key, `factor` times. around: the largest among the key and so many before and behind it counts.

    attention: the mean of what queries of the reading chunk's last frame give a key by softmax over all candidates.
    redundancy: softmax over the candidates of a key's mean cosine with the other ones. Both are per attention head.
    """

    measure: KeyMeasure
    around: int
    factor: Expr


@dataclass(frozen=True, slots=True)
class KeySum(Node):
    terms: tuple[KeyTerm, ...]


@dataclass(frozen=True, slots=True)
class KeyChoice(Node):
    """What attention reads of the chunks between sink and window: as many keys as `chunks` chunks hold, the best `by`.

    Of equal keys the earlier ones. Where no more chunks than that lie between, all of their keys.
    """

    chunks: Expr
    by: KeySum


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
    window: KeyWindow | None = None  # None: attention reads all keys that a token may see
    keys: KeyChoice | None = None  # None: of what a window leaves out, none is read


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
