"""Rotary position embedding with learned bands over (frame, row, column), half-split ("NeoX") pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnableRotary(nn.Module):
    """Angles per token from learned bands; rows and columns are rescaled to an area of 16 x 16 tokens."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        count = head_dim // 8
        self.bands = nn.Parameter(10000.0 ** (-torch.arange(count, dtype=torch.float32) / count))

    def forward(self, frames: int, height: int, width: int, frame_offset: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [1, frames * height * width, 1, 3 * bands], frame-major.

        frames, height, width: the token grid, height and width > 1; frame_offset: int64 [], the absolute number
        of the first frame.
        """
        bands, device = self.bands.float(), self.bands.device
        t = (torch.arange(frames, device=device) + frame_offset).float()
        y, x = self._centred(height, height, width), self._centred(width, height, width)
        grid = (frames, height, width, bands.shape[0])
        angles = torch.cat(
            (
                (t[:, None] * bands)[:, None, None].expand(grid),
                (y[:, None] * bands)[None, :, None].expand(grid),
                (x[:, None] * bands)[None, None].expand(grid),
            ),
            dim=-1,
        ).flatten(0, 2)[None, :, None]
        return angles.cos(), angles.sin()

    def _centred(self, count: int, height: int, width: int) -> Tensor:
        """Positions of `count` rows or columns, centred on 0. Sizes are tensors here: they may be symbolic."""
        device = self.bands.device
        size, h, w = (torch.full((), s, dtype=torch.float32, device=device) for s in (count, height, width))
        scale = torch.sqrt(h * w / 256.0)
        index = torch.arange(count, device=device).float()
        return (index - (size - 1) / 2) / (size - 1) * (size / scale - 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first 2 * r channels of x [B, S, heads, d] in pairs (c, c + r); cos and sin [1, S, 1, r]."""
    r = cos.shape[-1]
    a, b, rest = x[..., :r], x[..., r : 2 * r], x[..., 2 * r :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)
