"""Tiled evaluation of a video autoencoder: overlapping, linearly blended tiles in space, plain ones in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sizes in pixels and frames. Raises ValueError when they are no multiples of the compression factors."""

    size: int
    frames: int
    overlap: float
    spatial_factor: int
    temporal_factor: int

    def __post_init__(self) -> None:
        fits = self.size % self.spatial_factor == 0 and self.stride % self.spatial_factor == 0
        if not (fits and self.frames % self.temporal_factor == 0 and 0 <= self.overlap < 1 and self.frames > 0):
            raise ValueError(
                f"tiles of {self.size} px (stride {self.stride}) and {self.frames} frames are no multiples of "
                f"{self.spatial_factor} px and {self.temporal_factor} frames"
            )

    @property
    def stride(self) -> int:
        return int(self.size * (1 - self.overlap))


def _blend(before: Tensor, tile: Tensor, extent: int, dim: int) -> Tensor:
    """`tile` with its first `extent` rows along `dim` faded in from the last rows of `before`."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    shape = [1] * tile.dim()
    shape[dim] = extent
    weight = (torch.arange(extent, device=tile.device, dtype=tile.dtype) / extent).view(shape)
    old = before.narrow(dim, before.shape[dim] - extent, extent)
    new = tile.narrow(dim, 0, extent)
    rest = tile.narrow(dim, extent, tile.shape[dim] - extent)
    return torch.cat((old * (1 - weight) + new * weight, rest), dim=dim)


def _assemble(tiles: list[list[Tensor]], blend: int, stride: int, in_place: bool) -> Tensor:
    """Rows of tiles to one tensor. in_place: blend against neighbours that are already blended (encoding)."""
    rows = []
    for i, row in enumerate(tiles):
        parts = []
        for j, tile in enumerate(row):
            if i > 0:
                tile = _blend(tiles[i - 1][j], tile, blend, 3)
            if j > 0:
                tile = _blend(row[j - 1], tile, blend, 4)
            if in_place:
                row[j] = tile
            parts.append(tile[..., :stride, :stride])
        rows.append(torch.cat(parts, dim=4))
    return torch.cat(rows, dim=3)


def _tiles(x: Tensor, size: int, stride: int) -> list[list[Tensor]]:
    height, width = x.shape[3:]
    return [[x[..., i : i + size, j : j + size] for j in range(0, width, stride)] for i in range(0, height, stride)]


def encode_tiles(encode: Callable[[Tensor], Tensor], video: Tensor, tiling: Tiling) -> Tensor:
    """Moments of `video` [B, 3, F, H, W]; a last piece of one frame is encoded as an image."""
    factor, parts = tiling.spatial_factor, []
    for piece in video.split(tiling.frames, dim=2):
        tiles = [[encode(t) for t in row] for row in _tiles(piece, tiling.size, tiling.stride)]
        blend = int(tiling.size // factor * tiling.overlap)
        parts.append(_assemble(tiles, blend, tiling.size // factor - blend, in_place=True))
    return torch.cat(parts, dim=2)


def decode_tiles(decode: Callable[[Tensor], Tensor], latent: Tensor, tiling: Tiling) -> Tensor:
    """Video of `latent` [B, z, t, h, w]."""
    factor, parts = tiling.spatial_factor, []
    for piece in latent.split(tiling.frames // tiling.temporal_factor, dim=2):
        tiles = [[decode(t) for t in row] for row in _tiles(piece, tiling.size // factor, tiling.stride // factor)]
        blend = int(tiling.size * tiling.overlap)
        parts.append(_assemble(tiles, blend, tiling.size - blend, in_place=False))
    return torch.cat(parts, dim=2)
