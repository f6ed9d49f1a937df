"""Where a policy's sources live in a captured model, and how each is brought to [B, G, F, P, C]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

import torch

from mccompile import ir
from mccompile.capture.part import Input, Modulated, Shared

SourceLayout = Literal["tokens", "constant", "latent"]


@dataclass(frozen=True, slots=True)
class VideoStream:
    """The stream of video tokens at the first block."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The residual of the blocks before the cached region."""


@dataclass(frozen=True, slots=True)
class ProbeOutput:
    """The stream of video tokens that enters the cached region."""


@dataclass(frozen=True, slots=True)
class RegionOutput:
    """The stream of video tokens that leaves the cached region."""


@dataclass(frozen=True, slots=True)
class RegionInput:
    """The stream of video tokens that enters the layers which are decided about."""


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """The first output of the model. channels: its second size. It is known when the call is over."""

    channels: int


@dataclass(frozen=True, slots=True)
class BlockStreams:
    """The streams of video tokens that enter and leave a block, or a sublayer: their difference is its residual."""

    entered: str
    left: str


SourceValue: TypeAlias = (
    Input | Shared | VideoStream | Probe | ProbeOutput | Modulated | RegionInput | RegionOutput | ModelOutput
    | BlockStreams
)


@dataclass(frozen=True, slots=True)
class Located:
    """A source found in the model.

    axis: the token axis of the value, or the frame axis of latents.
    """

    source: ir.SourceName
    value: SourceValue
    layout: SourceLayout
    axis: int
    patch: tuple[int, int, int]


def to_cells(value: torch.Tensor, where: Located, account: torch.Tensor) -> torch.Tensor:
    """Returns `value` as [B, G, F, P, C], size 1 where it does not vary. account: gives the sizes [B, G, F, P]."""
    g, f, p = account.size(1), account.size(2), account.size(3)
    match where.layout:
        case "tokens":  # channels keep their size, which is a constant: loops over it need no division
            return value.movedim(where.axis, 1).flatten(2).unflatten(1, (g, f, p))
        case "constant":
            return value.reshape(value.size(0), 1, 1, 1, -1)
        case "latent":  # [B, C, frames, height, width] to patches, channels and pixels of a patch last
            pt, ph, pw = where.patch
            b, c = value.size(0), value.size(1)
            x = value.unflatten(4, (-1, pw)).unflatten(3, (-1, ph)).unflatten(2, (-1, pt))
            return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, g, f, p, c * pt * ph * pw)


def shown(value: SourceValue) -> str:
    """Names the value, for texts of a lowered model."""
    match value:
        case Input(name):
            return f"input:{name}"
        case Shared(name):
            return f"shared:{name}"
        case VideoStream():
            return "stream"
        case Probe():
            return "probe"
        case ProbeOutput():
            return "probed"
        case Modulated():
            return "modulated"
        case RegionInput():
            return "what enters the region"
        case RegionOutput():
            return "output"
        case ModelOutput(channels):
            return f"result:{channels}"
        case BlockStreams(entered, left):
            return f"{left} less {entered}"
        case _:
            assert_never(value)
