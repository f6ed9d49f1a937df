"""What the checker establishes: names resolved, `extends` merged, defaults filled, types and units right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.types import Granularity

CacheDtype: TypeAlias = Literal["auto", "model", "float32", "bfloat16", "float16", "float8"]
CacheDevice: TypeAlias = Literal["auto", "model", "cpu"]


@dataclass(frozen=True, slots=True)
class CheckedParam:
    """low <= default <= high; `whole` if all three are and the unit is no percentage."""

    name: str
    default: float
    low: float
    high: float
    whole: bool
    unit: ast.Unit
    at: Span


@dataclass(frozen=True, slots=True)
class CheckedSignal:
    """`late`: reads the block output, so it is known after the blocks have run and used by the next step."""

    name: str
    expr: ast.Expr
    granularity: Granularity
    late: bool


@dataclass(frozen=True, slots=True)
class CheckedChunks:
    frames: int | None
    pending: Literal["skip", "compute"]
    finished: Literal["keep", "refresh", "compute"]


@dataclass(frozen=True, slots=True)
class CheckedCache:
    dtype: CacheDtype
    residual: CacheDtype
    device: CacheDevice
    budget: int | None
    refresh_every: int | None
    refresh_last: bool
    at: Span | None


@dataclass(frozen=True, slots=True)
class CheckedBranches:
    share_decision: str | None
    batch: bool


@dataclass(frozen=True, slots=True)
class CheckedPolicy:
    """A policy that means something.

    Signals stand in an order in which they can be computed, phases in their own order, layers in order of
    depth. Names in expressions are names of `params`, of `signals`,
    or built-in; calls bind without error; steps of a mask have a length.
    """

    name: str
    models: tuple[str, ...]
    params: tuple[CheckedParam, ...]
    signals: tuple[CheckedSignal, ...]
    phases: tuple[ast.PhaseDecl, ...]
    layers: tuple[ast.LayersDecl, ...]
    chunks: CheckedChunks
    cache: CheckedCache
    branches: CheckedBranches
    at: Span
