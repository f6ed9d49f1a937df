"""A tiny causal Wan as Self-Forcing (arXiv 2506.08009) and Causal-Forcing publish it: few steps, kept keys and values.

The modules and their names are those of the published checkpoints. One thing differs: the published forward writes keys
and values into caches that it is given, and this one returns them. `Rollout` is the published loop: a chunk takes all
its steps, then one clean pass, whose keys and values the later chunks read; a window of them is kept, the first ones
always (the sink).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

DIM, HEADS, FFN, FREQ, TEXT_DIM, TEXT, CHANNELS = 36, 2, 48, 16, 8, 5, 4
KeyValues = list[tuple[torch.Tensor, torch.Tensor]]  # of each block, [batch, tokens, heads, channels]
FRAMES = 3  # latent frames of a chunk
STEPS = (1000.0, 750.0, 500.0, 250.0)  # of a chunk; the clean pass comes after them, at 0


class Attention(nn.Module):
    """Self-attention over what is kept and the chunk itself, or attention to the text."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(DIM, eps=1e-6), nn.RMSNorm(DIM, eps=1e-6)

    def heads(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries of x, keys and values of y."""
        made = self.norm_q(self.q(x)), self.norm_k(self.k(y)), self.v(y)
        q, k, v = (t.unflatten(2, (HEADS, -1)) for t in made)
        return q, k, v

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        found = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return self.o(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One block: `blocks.N` of a published checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(DIM, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.norm3 = nn.LayerNorm(DIM, eps=1e-6)
        self.self_attn, self.cross_attn = Attention(), Attention()
        self.ffn = nn.Sequential(nn.Linear(DIM, FFN), nn.GELU(approximate="tanh"), nn.Linear(FFN, DIM))
        self.modulation = nn.Parameter(torch.randn(1, 6, DIM) / DIM**0.5)

    def forward(
        self, x: torch.Tensor, e: torch.Tensor, freqs: torch.Tensor, context: torch.Tensor, past: torch.Tensor,
        past_values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x: [B, L, C]. e: [B, F, 6, C]. past, past_values: [B, tokens, heads, C / heads]. Its own come last."""
        frames, of_frame = e.size(1), x.size(1) // e.size(1)
        parts = (self.modulation.unsqueeze(1) + e).chunk(6, dim=2)

        def modulated(y: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return (y.unflatten(1, (frames, of_frame)) * (1 + scale) + shift).flatten(1, 2)

        def gated(y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
            return (y.unflatten(1, (frames, of_frame)) * gate).flatten(1, 2)

        y = modulated(self.norm1(x), parts[1], parts[0])
        q, k, v = self.self_attn.heads(y, y)
        q, k = _rotated(q, freqs), _rotated(k, freqs)
        seen = self.self_attn.attend(q, torch.cat([past, k], 1), torch.cat([past_values, v], 1))
        x = x + gated(seen, parts[2])
        x = x + self.cross_attn.attend(*self.cross_attn.heads(self.norm3(x), context))
        y = self.ffn(modulated(self.norm2(x), parts[4], parts[3]))
        return x + gated(y, parts[5]), k, v


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(DIM, elementwise_affine=False, eps=1e-6), nn.Linear(DIM, 4 * CHANNELS)
        self.modulation = nn.Parameter(torch.randn(1, 2, DIM) / DIM**0.5)

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """x: [B, L, C]. e: [B, F, 1, C]."""
        frames = e.size(1)
        shift, scale = (self.modulation.unsqueeze(1) + e).chunk(2, dim=2)
        y = self.norm(x).unflatten(1, (frames, x.size(1) // frames))
        return self.head(y * (1 + scale) + shift).flatten(1, 2)


class CausalWan(nn.Module):
    """The published causal Wan, with keys and values given and returned."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(CHANNELS, DIM, (1, 2, 2), (1, 2, 2))
        self.text_embedding = nn.Sequential(nn.Linear(TEXT_DIM, DIM), nn.GELU("tanh"), nn.Linear(DIM, DIM))
        self.time_embedding = nn.Sequential(nn.Linear(FREQ, DIM), nn.SiLU(), nn.Linear(DIM, DIM))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(DIM, 6 * DIM))
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.head = Head()

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, kv_cache: KeyValues, start_frame: int
    ) -> tuple[torch.Tensor, KeyValues]:
        """x: [B, C, F, H, W], one chunk. timestep: [B, F]. start_frame: of the chunk in the video.

        Returns the flow, and the keys and values of the chunk.
        """
        x = self.patch_embedding(x)
        batch, _, frames, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)
        t = self.time_embedding(_waves(timestep))
        e, context = self.time_projection(t).unflatten(2, (6, DIM)), self.text_embedding(context)
        freqs = _table(frames, height, width, start_frame, x.device)
        made: KeyValues = []
        for block, (k, v) in zip(self.blocks, kv_cache, strict=True):
            x, *own = block(x, e, freqs, context, k, v)
            made.append((own[0], own[1]))
        x = self.head(x, t[:, :, None]).view(batch, frames, height, width, 1, 2, 2, CHANNELS)
        return torch.einsum("bfhwpqrc->bcfphqwr", x).reshape(batch, CHANNELS, frames, height * 2, width * 2), made


def _waves(timestep: torch.Tensor) -> torch.Tensor:
    """[B, F] to [B, F, FREQ]."""
    rates = torch.pow(10000, -torch.arange(FREQ // 2, device=timestep.device) / (FREQ // 2))
    angles = timestep[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


def _table(frames: int, height: int, width: int, start: int, device: torch.device) -> torch.Tensor:
    """Rotary angles [tokens, 1, channels / 2] of a chunk: a third each for frame, row and column."""
    count = DIM // HEADS // 6
    rates = 1 / torch.pow(10000, torch.arange(count, device=device) / count)
    ends = ((start, start + frames), (0, height), (0, width))
    f, h, w = (torch.arange(*bounds, device=device)[:, None] * rates for bounds in ends)
    shape = (frames, height, width, count)
    parts = f[:, None, None].expand(shape), h[None, :, None].expand(shape), w[None, None].expand(shape)
    return torch.cat(parts, -1).reshape(frames * height * width, 1, 3 * count)


def _rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pairs of channels of [B, L, heads, C] turned."""
    one, two = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([one * cos - two * sin, one * sin + two * cos], -1).flatten(-2)


@dataclass
class Rollout:
    """The published loop. window, sink: frames of keys and values that are kept, and of these the first ones."""

    model: Callable[..., tuple[torch.Tensor, KeyValues]]
    context: torch.Tensor
    size: tuple[int, int] = (8, 12)  # of the latent
    window: int = 6
    sink: int = 3
    told: Callable[[int, int], None] = lambda chunk, step: None  # before each call: the chunk, and its step
    kept: KeyValues = field(default_factory=list)

    @torch.no_grad()
    def run(self, chunks: int, layers: int = 2) -> torch.Tensor:
        """Latents [B, C, chunks * FRAMES, H, W]."""
        height, width = self.size
        tokens = height // 2 * (width // 2)
        noise = torch.Generator().manual_seed(0)
        empty = torch.zeros(len(self.context), 0, HEADS, DIM // HEADS)
        self.kept, video = [(empty, empty)] * layers, []
        for chunk in range(chunks):
            shape = (len(self.context), CHANNELS, FRAMES, height, width)
            x = torch.randn(shape, generator=noise)
            for step, sigma in enumerate((*STEPS, 0.0)):
                self.told(chunk, step)
                at = torch.full((len(x), FRAMES), sigma)
                flow, made = self.model(x, at, self.context, self.kept, chunk * FRAMES)
                if sigma:
                    following = (*STEPS, 0.0)[step + 1] / 1000
                    clean = x - sigma / 1000 * flow
                    x = (1 - following) * clean + following * torch.randn(shape, generator=noise)
            video.append(x)
            both = zip(self.kept, made, strict=True)
            self.kept = [(self._rolled(k, a, tokens), self._rolled(v, b, tokens)) for (k, v), (a, b) in both]
        return torch.cat(video, 2)

    def _rolled(self, before: torch.Tensor, new: torch.Tensor, tokens: int) -> torch.Tensor:
        """The sink and the latest frames."""
        whole, most, first = torch.cat([before, new], 1), self.window * tokens, self.sink * tokens
        if whole.size(1) <= most:
            return whole
        return torch.cat([whole[:, :first], whole[:, whole.size(1) - most + first :]], 1)
