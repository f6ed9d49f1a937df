"""Pipelines that enlarge a video tile by tile: Kandinsky 6 SR. A tile has one of the sizes that its model lists.

The call has no height and width: the size of the video chooses the tile, and each tile is a request with all steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from mccompile.pipelines.probe import SIZES, Declared, ExampleCall, arguments_at, record_at, record_declared
from mccompile.pipelines.steps import StepDriver
from mccompile.runtime.stand_in import transformer_of

SCALE = {"resolution_scale": 2}  # of the examples: how much a tile grows does not change its size
SEEN, UNSEEN = (3, 5), (4, 6)  # latent frames of the recorded calls, and of runs that prove something
TileSize = tuple[int, int]  # height, width in pixels


class TiledDriver(StepDriver):
    """Pipelines whose transformer lists the sizes of its tiles."""

    def fits(self, pipe: object) -> bool:
        return bool(_tiles(pipe))

    def record(
        self, pipe: object, arguments: Mapping[str, object], larger: bool = False
    ) -> tuple[ExampleCall, ExampleCall]:
        """Of two tiles, of which height and width differ if any two tiles differ so. Raises ProbeFailed."""
        others = {k: v for k, v in arguments.items() if k not in ("video", *SIZES)} | SCALE
        one, two = (record_at(pipe, size, others) for size in _sizes(pipe, SEEN))
        return one, two

    def declared(self, pipe: object, arguments: Mapping[str, object]) -> Declared:
        return record_declared(pipe, {**arguments_at(pipe, _sizes(pipe, SEEN)[0], SCALE), **arguments})

    def small_runs(self, pipe: object, arguments: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
        """Of videos, not of latents, which such a pipeline does not give."""
        others = {**arguments, **SCALE, "output_type": "np"}
        one, two = (arguments_at(pipe, size, others) for size in _sizes(pipe, UNSEEN))
        return one, two


def _tiles(pipe: object) -> list[TileSize]:
    """The sizes of a pipeline's tiles; none where it has no tiles."""
    config = getattr(transformer_of(pipe), "config", None)
    found = config.get("tile_sizes") if isinstance(config, Mapping) else None
    return [(int(height), int(width)) for height, width in found or ()]


def _sizes(pipe: object, frames: tuple[int, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The sizes of two videos that each fill one tile."""
    tiles = _tiles(pipe)
    differ = (pair for pair in combinations(tiles, 2) if pair[0][0] != pair[1][0] and pair[0][1] != pair[1][1])
    pair = next(differ, (tiles[0], tiles[-1]))
    temporal, scale = int(getattr(pipe, "vae_scale_factor_temporal", 4)), SCALE["resolution_scale"]
    first, second = (
        {"num_frames": (n - 1) * temporal + 1, "height": height // scale, "width": width // scale}
        for n, (height, width) in zip(frames, pair, strict=True)
    )
    return first, second


DRIVER = TiledDriver()
