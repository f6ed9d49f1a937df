"""Embeddings of time and caption. Everything here is computed in float32, whatever the dtype of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mccompile.models.magi.config import MagiModelConfig

TIME_FREQUENCIES = 256
TIME_SCALE = 1000.0
# Rows of the null caption that stand for "with caption" and "without" in the gates' condition.
ADALN_KEPT, ADALN_DROPPED = -2, -1


def linear_float32(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` in float32; the casts are explicit so that an exported graph holds no autocast region."""
    return F.linear(x.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float())


class TimestepEmbedder(nn.Module):
    """Times [...] in 0 (noise) .. 1 (clean) -> [..., condition_size] in float32."""

    def __init__(self, config: MagiModelConfig) -> None:
        super().__init__()
        size = config.condition_size
        self.mlp = nn.Sequential(nn.Linear(TIME_FREQUENCIES, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """`dtype` is the one of the layers: the official code rounds the sinusoids to it."""
        half = TIME_FREQUENCIES // 2
        index = torch.arange(half, dtype=torch.float32, device=timestep.device)
        angles = timestep.float().unsqueeze(-1) * torch.exp(index * (-math.log(10000.0) / half)) * TIME_SCALE
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)
        return linear_float32(self.mlp[2], F.silu(linear_float32(self.mlp[0], waves)))


class CaptionEmbedder(nn.Module):
    """Captions for cross-attention, and the two rows that tell the gates whether there is one."""

    def __init__(self, config: MagiModelConfig) -> None:
        super().__init__()
        channels = config.caption_channels
        self.y_proj_xattn = nn.Sequential(nn.Linear(channels, config.text_size), nn.SiLU())
        self.y_proj_adaln = nn.Sequential(nn.Linear(channels, config.condition_size))
        self.null_caption_embedding = nn.Parameter(torch.zeros(config.caption_max_length, channels))

    def forward(self, caption: Tensor, adaln_row: Tensor) -> tuple[Tensor, Tensor]:
        """caption [B, n, L, caption_channels] -> [B, n, L, text_size]; adaln_row int64 [B] -> [B, condition_size].

        adaln_row: a row of the null caption, counted from its start.
        """
        text = F.silu(linear_float32(self.y_proj_xattn[0], caption))
        row = F.embedding(adaln_row, self.null_caption_embedding.float())
        return text, linear_float32(self.y_proj_adaln[0], row)
