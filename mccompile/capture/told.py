"""The grid of tokens that come flat: from what the call tells the model, proved on the model's own tables.

A call tells sizes (`num_frames`, `height`, `width`, shapes of images) or a position for every token. Sizes are taken
for the grid where the model has a table (rotary embeddings) of which every column changes along one axis of that grid
only, and each axis changes some column. Positions tell an image: they differ from token to token, and their first
number, that of the frame, does not. Three numbers a token tell a video, if they are those of a frame-major grid; what
it is given (frames of a reference, keyframes) may lie behind. An editing model is given images behind the one that it
makes: each is of a later frame, and begins at the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import TypeAlias

import torch

from mccompile.capture.places import starts_of
from mccompile.capture.split import split_prelude
from mccompile.capture.types import Assembled, Beside, OneFrame, PlacedGrid, Port, ToldGrid

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
        told = ToldGrid(source, sizes, axis)
        if any(_lies_so(table, told.of_call(calls[0])) for table in tables):
            return told
    names = [name for name in captured.inputs if _places_tokens(captured, name)]
    first = captured.streams[0].beside  # a model may be given the positions of all that its blocks see
    among = [Beside(0, 0), *([first] if first is not None and first.located and first != Beside(0, 0) else [])]
    places = [OneFrame(source, axis, name, own) for name in names for own in among]
    images = [grid for grid in places if _places_images(calls, grid)]
    if alone := [grid for grid in images if all(grid.behind(call) == 0 for call in calls)]:
        return alone[0]
    videos = (PlacedGrid(source, p.places, last, axis, p.among) for p in places for last in (False, True))
    video = next((grid for grid in videos if _places_a_video(calls, grid, counts)), None)
    return video if video is not None or not images else images[0]


def _places_tokens(captured: Assembled, name: str) -> bool:
    """Whether a value with a row for each token, a rotary table, is made of an input."""
    return any(name in port.depends and port.token_axis is not None for port in captured.shared)


def _places_a_video(calls: Sequence[dict[str, object]], grid: PlacedGrid, counts: tuple[int, int]) -> bool:
    """Whether an input has three numbers for each token, those of a grid and of what is behind, at both calls."""
    for call, count in zip(calls, counts, strict=True):
        places = call[grid.places]
        if not isinstance(places, torch.Tensor):
            return False
        starts = starts_of(places)
        if starts.dim() not in (2, 3) or starts.shape[-2 if grid.last else -1] != 3:
            return False
        if not _among(grid.among, starts.shape[-1 if grid.last else -2], count):
            return False
        frames, height, width = grid.of_call(call)
        if (frames, height) == (1, 1) or frames * height * width > count:
            return False
    return True


def _among(beside: Beside, rows: int, tokens: int) -> bool:
    """Whether there are that many tokens among rows, of which the others are `beside`."""
    known = beside.tokens(rows)
    start = beside.start(rows, tokens)
    return known == tokens if known is not None else 0 <= start <= rows - tokens


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


def _places_images(calls: Sequence[dict[str, object]], grid: OneFrame) -> bool:
    """Whether an input has a position for every token, of an image, or of one and others behind it."""
    for call in calls:
        places, latent = call[grid.places], call[grid.source]
        assert isinstance(latent, torch.Tensor)
        count = latent.shape[grid.axis]
        if not isinstance(places, torch.Tensor) or places.dim() not in (2, 3) or not 2 <= places.shape[-1] <= 4:
            return False
        if not _among(grid.among, places.shape[-2], count):
            return False
        start = grid.among.start(places.shape[-2], count)
        rows = places.reshape(-1, *places.shape[-2:])[0, start : start + count]
        first = grid.of_call(call)[2]
        if first < 2 or len(rows.unique(dim=0)) != count or len(rows[:first, 0].unique()) != 1:
            return False
    return True
