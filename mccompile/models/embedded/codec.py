"""The latent codec of the embedded pipeline: an orthonormal transform of 2 x 8 x 8 pixel blocks.

A block of two frames and 8 x 8 pixels (384 numbers) is projected on the leading principal directions of the procedural
videos; decoding is the transposed map. There is nothing learned by gradient and nothing random: encoding is exact
projection, and `decode(encode(v))` is the nearest video in the span. It speaks the interface that diffusers' video
pipelines expect of a VAE (`temperal_downsample`, `config.latents_mean`, `encode(...).latent_dist`, `decode`).
"""

from dataclasses import dataclass
from typing import Final

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

FRAMES_PER_LATENT: Final = 2
BLOCK: Final = 8


class PointDistribution:
    """The distribution of a deterministic encoder: all its mass at `latents` [B, C, F, H, W]."""

    __slots__ = ("latents",)

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def mode(self) -> Tensor:
        """The latents."""
        return self.latents

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The latents; `generator` is not used, for there is nothing to draw."""
        return self.latents


@dataclass
class EncoderOutput(BaseOutput):
    """What `BlockCodec.encode` returns."""

    latent_dist: PointDistribution


@dataclass
class DecoderOutput(BaseOutput):
    """What `BlockCodec.decode` returns: `sample` [B, 3, frames, height, width]."""

    sample: Tensor


class BlockCodec(ModelMixin, ConfigMixin):
    """Block transform with `z_dim` channels; 1 + 2k frames become 1 + k latent frames.

    The first frame stands alone, as in causal video VAEs: its block shows it twice. Latents come out raw; a pipeline
    normalises them as `(z - latents_mean) / latents_std`. Pixels are in [-1, 1].
    """

    @register_to_config
    def __init__(
        self,
        z_dim: int = 24,
        latents_mean: tuple[float, ...] = (0.0,) * 24,
        latents_std: tuple[float, ...] = (1.0,) * 24,
    ) -> None:
        super().__init__()
        self.temperal_downsample = (False, False, True)
        width = FRAMES_PER_LATENT * BLOCK * BLOCK * 3
        self.basis = nn.Parameter(torch.zeros(z_dim, width), requires_grad=False)
        self.centre = nn.Parameter(torch.zeros(width), requires_grad=False)

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[PointDistribution]:
        """Raw latents [B, z_dim, 1 + k, H / 8, W / 8] of pixels [B, 3, 1 + 2k, H, W] in [-1, 1].

        Raises ValueError where the number of frames is even or a side is not a multiple of 8.
        """
        _, _, frames, height, width = x.shape
        if frames % FRAMES_PER_LATENT != 1 or height % BLOCK or width % BLOCK:
            raise ValueError(
                f"BlockCodec.encode: got {frames} frames of {height} x {width}; "
                f"give an odd number of frames and sides that are multiples of {BLOCK}"
            )
        blocks = to_blocks(torch.cat([x[:, :, :1], x], dim=2))
        latents = (blocks - self.centre) @ self.basis.T
        dist = PointDistribution(latents.permute(0, 4, 1, 2, 3).contiguous())
        return EncoderOutput(latent_dist=dist) if return_dict else (dist,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Pixels [B, 3, 1 + 2k, H, W] in [-1, 1] (clamped) of raw latents [B, z_dim, 1 + k, h, w]."""
        blocks = z.permute(0, 2, 3, 4, 1) @ self.basis + self.centre
        sample = from_blocks(blocks)[:, :, 1:].clamp(-1.0, 1.0)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor) -> Tensor:
        """`decode(encode(sample))`: the projection of pixels [B, 3, 1 + 2k, H, W]."""
        (dist,) = self.encode(sample, return_dict=False)
        return self.decode(dist.mode(), return_dict=False)[0]


def to_blocks(video: Tensor) -> Tensor:
    """[B, 3, 2F, 8H, 8W] to blocks [B, F, H, W, 384]."""
    batch, _, frames, height, width = video.shape
    split = video.reshape(
        batch, 3, frames // FRAMES_PER_LATENT, FRAMES_PER_LATENT, height // BLOCK, BLOCK, width // BLOCK, BLOCK
    )
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def from_blocks(blocks: Tensor) -> Tensor:
    """Inverse of `to_blocks`."""
    batch, frames, height, width, _ = blocks.shape
    split = blocks.reshape(batch, frames, height, width, 3, FRAMES_PER_LATENT, BLOCK, BLOCK)
    return split.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(
        batch, 3, frames * FRAMES_PER_LATENT, height * BLOCK, width * BLOCK
    )
