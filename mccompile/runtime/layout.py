"""Sizes of one call: samples, chunks, frames per chunk, tokens per frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mccompile.capture.types import TokenGrid
from mccompile.lowering.types import LoweredModel
from mccompile.runtime.clock import Moment
from mccompile.runtime.errors import UnevenChunks
from mccompile.runtime.shared import Value


@dataclass(frozen=True, slots=True)
class Layout:
    """batch B, chunks G in the call, frames F of each, positions P of a frame; token = ((g F) + f) P + p.

    rows: of a frame, each with P / rows of its positions; 1 where the grid is not known. behind: tokens of the latent
    that are no part of the grid (images, references that are given). Where a token is computed, all of them are.
    """

    batch: int
    chunks: int
    frames: int
    positions: int
    rows: int = 1
    behind: int = 0

    @property
    def cells(self) -> tuple[int, int, int, int]:
        return self.batch, self.chunks, self.frames, self.positions

    @property
    def tokens(self) -> int:
        return self.chunks * self.frames * self.positions


def layout_of(lowered: LoweredModel, moment: Moment, inputs: Mapping[str, Value], stream: torch.Tensor) -> Layout:
    """Layout of a call; where the grid is unknown, each chunk is one frame. Raises UnevenChunks."""
    axis, chunks = lowered.captured.sample_axis, len(moment.chunks)
    batch, rows = stream.size(axis), stream.size(0 if axis else 1)
    grid = lowered.captured.grid
    if grid is None:
        if rows % chunks:
            raise UnevenChunks(rows, chunks)
        return Layout(batch, chunks, 1, rows // chunks)
    frames, height, width = grid.of_call(inputs)
    if frames % chunks:
        raise UnevenChunks(frames, chunks)
    batch = batch // frames if isinstance(grid, TokenGrid) and grid.apart else batch
    behind = grid.behind(inputs)
    return Layout(batch, chunks, frames // chunks, height * width, height, behind)
