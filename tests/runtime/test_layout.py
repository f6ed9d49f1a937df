"""The sizes of a call: samples, chunks, frames of a chunk, tokens of a frame."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile.capture.types import AnyGrid, OneFrame, TokenGrid
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.errors import UnevenChunks
from mccompile.runtime.layout import Layout, layout_of

LATENT = {"latent": torch.zeros(2, 4, 6, 8, 10)}
GRID = TokenGrid("latent", (2, 3, 4), (1, 2, 2))


def laid(grid: AnyGrid | None, chunks: int, stream: torch.Tensor, axis: int = 0, **more: torch.Tensor) -> Layout:
    lowered: Any = SimpleNamespace(captured=SimpleNamespace(sample_axis=axis, grid=grid))
    times = tuple(ChunkTime(c, "active", 0) for c in range(chunks))
    return layout_of(lowered, Moment("run", 0, "", Grid(1, (0.0,), (0.0,)), times, chunks), {**LATENT, **more}, stream)


def test_a_grid_tells_frames_rows_and_columns() -> None:
    found = laid(GRID, 3, torch.zeros(2, 120, 8))
    assert found == Layout(batch=2, chunks=3, frames=2, positions=20, rows=4, behind=0)
    assert (found.cells, found.tokens) == ((2, 3, 2, 20), 120)
    with pytest.raises(UnevenChunks, match="6 latent frames do not divide into 4 chunks"):
        laid(GRID, 4, torch.zeros(2, 120, 8))


def test_frames_of_all_samples_along_the_first_axis_are_no_samples() -> None:
    apart = TokenGrid("latent", (2, 3, 4), (1, 2, 2), apart=True)
    assert laid(apart, 2, torch.zeros(12, 20, 8)) == Layout(2, 2, 3, 20, 4)


def test_without_a_grid_each_chunk_is_one_frame() -> None:
    assert laid(None, 3, torch.zeros(2, 12, 8)) == Layout(2, 3, 1, 4, 1)
    assert laid(None, 3, torch.zeros(12, 2, 8), axis=1) == Layout(2, 3, 1, 4, 1)
    with pytest.raises(UnevenChunks, match="12 latent frames do not divide into 5 chunks"):
        laid(None, 5, torch.zeros(2, 12, 8))


def test_images_that_are_given_lie_behind() -> None:
    """The first 12 of 20 tokens have the place of the image that is made."""
    places = torch.zeros(20, 3)
    places[12:, 0] = 1
    grid = OneFrame("flat", 1, "places")
    found = laid(grid, 1, torch.zeros(1, 20, 8), flat=torch.zeros(1, 20, 4), places=places)
    assert (found.tokens, found.behind, found.rows) == (12, 8, 1)
