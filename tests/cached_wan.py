"""The tiny causal Wan with the published caches: its forward writes keys and values into what it is given.

As in Self-Forcing, each block has a dict: buffers `k` and `v` of a fixed length, and how far they are filled, in the
video (`global_end_index`) and in the buffers (`local_end_index`). A full buffer is rolled behind the sink.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from tests.causal_wan import CHANNELS, DIM, FRAMES, HEADS, STEPS, Block, CausalWan, _rotated, _table, _waves

Cache = dict[str, torch.Tensor]


class CachedBlock(Block):
    def forward(  # type: ignore[override]
        self, x: torch.Tensor, e: torch.Tensor, freqs: torch.Tensor, context: torch.Tensor, kv_cache: Cache,
        current_start: int, sink: int,
    ) -> torch.Tensor:
        """x: [B, L, C], tokens from `current_start` on. e: [B, F, 6, C]. sink: tokens that are never rolled out."""
        frames = e.size(1)
        parts = (self.modulation.unsqueeze(1) + e).chunk(6, dim=2)

        def modulated(y: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return (y.unflatten(1, (frames, -1)) * (1 + scale) + shift).flatten(1, 2)

        y = modulated(self.norm1(x), parts[1], parts[0])
        q, k, v = self.self_attn.heads(y, y)
        end = self.written(kv_cache, _rotated(k, freqs), v, current_start, sink)
        seen = self.self_attn.attend(_rotated(q, freqs), kv_cache["k"][:, :end], kv_cache["v"][:, :end])
        x = x + modulated(seen, parts[2] - 1, torch.zeros(()))
        x = x + self.cross_attn.attend(*self.cross_attn.heads(self.norm3(x), context))
        y = self.ffn(modulated(self.norm2(x), parts[4], parts[3]))
        return x + modulated(y, parts[5] - 1, torch.zeros(()))

    def written(self, cache: Cache, k: torch.Tensor, v: torch.Tensor, start: int, sink: int) -> int:
        """Writes the keys and values of a chunk behind those before it. Returns how far the buffers are filled."""
        new, end = k.size(1), start + k.size(1)
        known, filled = int(cache["global_end_index"].item()), int(cache["local_end_index"].item())
        size = cache["k"].size(1)
        if end > known and new + filled > size:
            gone = new + filled - size
            for name in ("k", "v"):
                cache[name][:, sink : filled - gone] = cache[name][:, sink + gone : filled].clone()
            filled -= gone
        stop = filled + end - known
        cache["k"][:, stop - new : stop] = k
        cache["v"][:, stop - new : stop] = v
        cache["global_end_index"].fill_(end)
        cache["local_end_index"].fill_(stop)
        return stop


class CachedWan(CausalWan):
    """The published causal Wan, which writes into its caches."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__(0)
        self.blocks = nn.ModuleList(CachedBlock() for _ in range(layers))

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, kv_cache: list[Cache], start_frame: int,
        sink: int = FRAMES,
    ) -> torch.Tensor:
        """x: [B, C, F, H, W], one chunk. timestep: [B, F]. start_frame: of the chunk. sink: frames always kept."""
        x = self.patch_embedding(x)
        batch, _, frames, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)
        t = self.time_embedding(_waves(timestep))
        e, context = self.time_projection(t).unflatten(2, (6, DIM)), self.text_embedding(context)
        freqs, place = _table(frames, height, width, start_frame, x.device), height * width
        for block, cache in zip(self.blocks, kv_cache, strict=True):
            x = block(x, e, freqs, context, kv_cache=cache, current_start=start_frame * place, sink=sink * place)
        x = self.head(x, t[:, :, None]).view(batch, frames, height, width, 1, 2, 2, CHANNELS)
        return torch.einsum("bfhwpqrc->bcfphqwr", x).reshape(batch, CHANNELS, frames, height * 2, width * 2)


def empty_caches(size: tuple[int, int], frames: int, layers: int = 2) -> list[Cache]:
    """Caches that hold so many latent frames."""
    tokens = frames * (size[0] // 2) * (size[1] // 2)
    ends = ("global_end_index", "local_end_index")
    return [
        {k: torch.zeros(1, tokens, HEADS, DIM // HEADS) for k in "kv"} | {k: torch.zeros(1).long() for k in ends}
        for _ in range(layers)
    ]


@dataclass
class CachedRollout:
    """The published loop: all steps of a chunk, then one clean pass, whose keys and values later chunks read."""

    model: Callable[..., torch.Tensor]
    context: torch.Tensor
    size: tuple[int, int] = (8, 12)  # of the latent
    window: int = 6  # frames of keys and values that are kept
    told: Callable[[int, int], None] = lambda chunk, step: None  # before each call: the chunk, and its step
    kept: list[Cache] = field(default_factory=list)

    @torch.no_grad()
    def run(self, chunks: int) -> torch.Tensor:
        """Latents [B, C, chunks * FRAMES, H, W]."""
        noise, video = torch.Generator().manual_seed(0), []
        self.kept = empty_caches(self.size, self.window)
        for chunk in range(chunks):
            x = torch.randn((1, CHANNELS, FRAMES, *self.size), generator=noise)
            for step, sigma in enumerate((*STEPS, 0.0)):
                self.told(chunk, step)
                flow = self.model(x, torch.full((1, FRAMES), sigma), self.context, self.kept, chunk * FRAMES)
                if sigma:
                    following = (*STEPS, 0.0)[step + 1] / 1000
                    clean = x - sigma / 1000 * flow
                    x = (1 - following) * clean + following * torch.randn(x.shape, generator=noise)
            video.append(x)
        return torch.cat(video, 2)
