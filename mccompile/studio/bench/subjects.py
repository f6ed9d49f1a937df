"""Transformers with random weights at given sizes, and calls of them. The cost of a step does not depend on weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from diffusers import SkyReelsV2Transformer3DModel

from mccompile import api
from mccompile.pipelines.probe import ExampleCall
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime


@dataclass(frozen=True, slots=True)
class Subject:
    """A SkyReels-V2 transformer and a video: `chunks` of `frames` latent frames of height x width tokens each.

    causal: whether chunks attend only to themselves and earlier ones (the model's own block-causal mask).
    """

    layers: int
    heads: int
    head_width: int
    ffn: int
    text_width: int
    text_tokens: int
    channels: int
    patch: int
    chunks: int
    frames: int
    height: int
    width: int
    causal: bool = True

    @property
    def tokens(self) -> int:
        return self.chunks * self.frames * self.height * self.width

    @property
    def probed(self) -> tuple[int, int]:
        """Chunks of the calls that it is captured from."""
        return (2, 3) if self.frames > 2 or not self.causal else (3, 4)

    @property
    def dim(self) -> int:
        return self.heads * self.head_width

    def model(self, device: torch.device, dtype: torch.dtype) -> SkyReelsV2Transformer3DModel:
        """The transformer, its weights drawn from one seed on the device itself."""
        before = torch.get_default_dtype()
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            with device:
                made = SkyReelsV2Transformer3DModel(
                    patch_size=(1, self.patch, self.patch),
                    num_attention_heads=self.heads,
                    attention_head_dim=self.head_width,
                    in_channels=self.channels,
                    out_channels=self.channels,
                    text_dim=self.text_width,
                    freq_dim=256,
                    ffn_dim=self.ffn,
                    num_layers=self.layers,
                    num_frame_per_block=self.frames if self.causal else 1,
                )
        finally:
            torch.set_default_dtype(before)
        return made.eval().requires_grad_(False)

    def call(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> ExampleCall:
        """Keyword arguments of one forward, batch 1, every frame at the timestep 500."""
        generator = torch.Generator().manual_seed(seed)
        frames = self.chunks * self.frames
        size = (1, self.channels, frames, self.height * self.patch, self.width * self.patch)
        latents = torch.randn(size, generator=generator)
        text = torch.randn(1, self.text_tokens, self.text_width, generator=generator)
        return {
            "hidden_states": latents.to(device, dtype),
            "timestep": torch.full((1, frames), 500, device=device),
            "encoder_hidden_states": text.to(device, dtype),
            "enable_diffusion_forcing": True,
            "return_dict": False,
        }

    def prepared(self, model: SkyReelsV2Transformer3DModel) -> api.Prepared:
        """The model, captured from calls at two small sizes."""
        weight, (few, more) = model.proj_out.weight, self.probed
        long = self.frames if self.causal else self.frames + 1  # its mask tells how many frames a chunk has
        one = dataclasses.replace(self, chunks=few, height=3, width=7)
        two = dataclasses.replace(self, chunks=more, frames=long, height=5, width=11)
        small, large = (s.call(weight.device, weight.dtype) for s in (one, two))
        return api.prepare(model, probe=small, second=large)


EMBEDDED = Subject(6, 4, 64, 640, 64, 512, 24, 1, chunks=8, frames=4, height=8, width=8)
"""The embedded model's transformer, on 2,048 tokens: a video twice as long as its default one."""

QUICK = Subject(2, 4, 64, 640, 64, 32, 24, 1, chunks=4, frames=4, height=16, width=32)
"""Two of the embedded model's blocks on 8,192 tokens: captured, compiled and timed within 40 s."""

TINY = Subject(2, 2, 16, 64, 16, 8, 4, 1, chunks=2, frames=3, height=4, width=5)
"""For tests."""

REAL = Subject(30, 12, 128, 8960, 4096, 512, 16, 2, chunks=5, frames=5, height=34, width=60)
"""SkyReels-V2-DF-1.3B at 540P: one window of 97 frames."""

Pattern = tuple[ChunkTime, ...]


def all_active(chunks: int) -> Pattern:
    """Every chunk at a step of its own: all of the video's tokens may be selected."""
    return tuple(ChunkTime(c, "active", 1) for c in range(chunks))


def grid(steps: int) -> Grid:
    """A plain grid of that many steps; synthetic runs never ask for more than its length."""
    sigmas = tuple(1.0 - i / steps for i in range(steps))
    return Grid(steps, tuple(1000.0 * s for s in sigmas), sigmas)
