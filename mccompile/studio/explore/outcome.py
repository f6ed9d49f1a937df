"""What a trial found, and a trial: plain numbers that a database keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mccompile.studio.explore.space import Point

EQUAL = 200.0  # dB that stand for equal videos, whose PSNR is infinite: a database and a plot need a number


@dataclass(frozen=True, slots=True)
class Outcome:
    """A policy on some prompts, against vanilla.

    flops, tokens: shares of vanilla's, 0..1. seconds, vanilla_seconds: wall time of the pipeline's calls, all prompts.
    psnr: of the worst prompt, in dB, EQUAL where nothing differs. frame: of the worst frame of all. ssim: mean.
    judged: share of the prompts whose colour and motion were seen; None where the judge does not know the prompts.
    lpips: mean learned distance, 0 where equal; None where it was not asked for. vbench, vanilla_vbench: the mean of
    each dimension of VBench that was asked for, of the policy's videos and of vanilla's.
    """

    flops: float
    tokens: float
    seconds: float
    vanilla_seconds: float
    psnr: float
    frame: float
    ssim: float
    judged: float | None
    lpips: float | None = None
    vbench: Mapping[str, float] = field(default_factory=dict)
    vanilla_vbench: Mapping[str, float] = field(default_factory=dict)

    @property
    def speed_up(self) -> float:
        """How many times less is computed than vanilla computes."""
        return 1.0 / self.flops


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished trial. twin: the earlier trial whose schedule this point has too, so that it was not run again."""

    number: int
    point: Point
    outcome: Outcome
    twin: int | None


def capped(decibel: float) -> float:
    """PSNR as a finite number."""
    return min(decibel, EQUAL) if math.isfinite(decibel) else EQUAL
