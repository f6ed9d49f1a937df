"""The grid of tokens that come flat: from what the call tells the model, proved on the model's own tables.

A call tells sizes (`num_frames`, `height`, `width`, shapes of images) or a position for every token. Sizes are taken
for the grid where the model has a table (rotary embeddings) of which every column changes along one axis of that grid
only, and each axis changes some column. Positions tell an image: they differ from token to token, and their first
number, that of the frame, does not. Three numbers a token tell a video, if they are those of a frame-major grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import TypeAlias

import torch

from mccompile.capture.places import counts_placed, starts_of
from mccompile.capture.split import split_prelude
from mccompile.capture.types import Assembled, OneFrame, PlacedGrid, Port, ToldGrid

Sizes: TypeAlias = tuple[str | int, str | int, str | int]


def told_grid(
    captured: Assembled, probe: Sequence[object], second: Sequence[object], source: str
) -> ToldGrid | PlacedGrid | OneFrame | None:
    """The grid that two calls tell of their flat latent, the input `source`; None where none is proved."""
    latent = captured.inputs.index(source)
    one, two = probe[latent], second[latent]
    if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
        return None
    axes = [i for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b and i > 0]
    if len(axes) != 1:
        return None
    (axis,) = axes
    calls = [dict(zip(captured.inputs, call, strict=True)) for call in (probe, second)]
    counts = one.shape[axis], two.shape[axis]
    tables = list(_tables(captured, probe, counts[0]))
    for sizes in _sizes(captured, calls, counts):
        told = ToldGrid(source, sizes)
        if any(_lies_so(table, told.of_call(calls[0])) for table in tables):
            return told
    places = [name for name in captured.inputs if _places_tokens(captured, name)]
    if any(_places_one_frame(calls, name, counts) for name in places):
        return OneFrame(source, axis)
    found = (PlacedGrid(source, name, last) for name in places for last in (False, True))
    return next((grid for grid in found if _places_a_video(calls, grid, counts)), None)


def _places_tokens(captured: Assembled, name: str) -> bool:
    """Whether a value with a row for each token, a rotary table, is made of an input."""
    return any(name in port.depends and port.token_axis is not None for port in captured.shared)


def _places_a_video(calls: Sequence[dict[str, object]], grid: PlacedGrid, counts: tuple[int, int]) -> bool:
    """Whether an input has three numbers for each token, which are those of a grid, at both calls."""
    for call, count in zip(calls, counts, strict=True):
        places = call[grid.places]
        shape = (3, count) if grid.last else (count, 3)
        if not isinstance(places, torch.Tensor):
            return False
        starts = starts_of(places)
        if starts.dim() not in (2, 3) or starts.shape[-2:] != shape:
            return False
        if counts_placed(places, grid.last) is None:
            return False
    return True


def _sizes(captured: Assembled, calls: Sequence[dict[str, object]], counts: tuple[int, int]) -> Iterator[Sizes]:
    """Numbers of the call whose product is the number of tokens at both calls."""
    told = [n for n in captured.inputs if all(type(call[n]) is int for call in calls)]
    fixed: list[str | int] = [1, *(x for _, x in captured.constants if isinstance(x, int) and x > 1)]
    for height, width in permutations(told, 2):
        for frames in dict.fromkeys([*(n for n in told if n not in (height, width)), *fixed]):
            if tuple(_tokens((frames, height, width), call) for call in calls) == counts:
                yield frames, height, width


def _tokens(sizes: Sizes, call: dict[str, object]) -> int:
    frames, height, width = ToldGrid("", sizes).of_call(call)
    return frames * height * width


def _tables(captured: Assembled, probe: Sequence[object], tokens: int) -> Iterator[torch.Tensor]:
    """Values that sizes alone determine, with one row for each token: [tokens, columns]."""
    for port in captured.shared:
        if port.token_axis is None or port.beside is None or port.depends:
            continue
        with torch.no_grad():
            (value,) = split_prelude(captured, [port.name])(*probe)
        yield _rows(value, port, tokens)


def _rows(value: torch.Tensor, port: Port, tokens: int) -> torch.Tensor:
    assert port.token_axis is not None
    assert port.beside is not None
    rows = value.size(port.token_axis)
    start = port.beside.start(rows, tokens) if port.beside.located else 0
    flat = value.narrow(port.token_axis, start, tokens).movedim(port.token_axis, 0).flatten(1)
    return torch.view_as_real(flat).flatten(1) if flat.is_complex() else flat


def _lies_so(table: torch.Tensor, sizes: tuple[int, int, int]) -> bool:
    """Whether each column of [tokens, columns] changes along at most one axis, and each axis changes some column."""
    grid = table.unflatten(0, sizes)
    changes = torch.stack([(grid != grid.narrow(axis, 0, 1)).any(0).any(0).any(0) for axis in range(3)])
    alone = bool((changes.sum(0) <= 1).all())
    return alone and all(bool(changes[axis].any()) for axis in range(3) if sizes[axis] > 1)


def _places_one_frame(calls: Sequence[dict[str, object]], name: str, counts: tuple[int, int]) -> bool:
    """Whether an input has a position for every token, and all of them are of one frame."""
    for call, count in zip(calls, counts, strict=True):
        places = call[name]
        if not isinstance(places, torch.Tensor) or places.dim() not in (2, 3) or places.shape[-2] != count:
            return False
        rows = places.reshape(-1, places.shape[-1])[:count]
        if not 2 <= rows.shape[1] <= 4 or len(rows.unique(dim=0)) != count or len(rows[:, 0].unique()) != 1:
            return False
    return True
