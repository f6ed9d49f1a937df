"""Three-way guidance: with caption and past, with past alone, alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mccompile.models.magi.config import MagiSettings

# A time that was computed a little below a bucket's start still belongs to it.
_TIME_SLACK = 1e-7


@dataclass(frozen=True, slots=True)
class GuidanceWeights:
    """Weights of the three velocities of one chunk; they sum to 1."""

    uncond: float  # the chunk alone, no caption
    prev: float  # with the chunks before it, no caption
    full: float  # with the chunks before it and the caption


def guidance_weights(time: float, settings: MagiSettings) -> GuidanceWeights:
    """Weights at a chunk's time: the last bucket of `cfg_t_range` that has begun gives prev scale p and text scale s.

    velocity = (1 - p) * uncond + (p - s) * prev + s * full
    """
    begun = [k for k, start in enumerate(settings.cfg_t_range) if start - _TIME_SLACK <= time]
    if not begun:
        raise ValueError(f"time {time} lies before cfg_t_range {settings.cfg_t_range}")
    p, s = settings.prev_chunk_scales[begun[-1]], settings.text_scales[begun[-1]]
    return GuidanceWeights(uncond=1 - p, prev=p - s, full=s)


def combine(weights: GuidanceWeights, uncond: Tensor | None, prev: Tensor, full: Tensor | None) -> Tensor:
    """The guided velocity of one chunk; a velocity may be None only where its weight is 0.

    Leaving it out is exact: with weights (0, 1, 0) the sum 0 * a + 1 * b + 0 * c is b in every bit.
    """
    velocity = weights.prev * prev
    if uncond is not None:
        velocity = weights.uncond * uncond + velocity
    elif weights.uncond != 0:
        raise ValueError("the chunk's own velocity is missing but has a weight")
    if full is not None:
        velocity = velocity + weights.full * full
    elif weights.full != 0:
        raise ValueError("the captioned velocity is missing but has a weight")
    return velocity
