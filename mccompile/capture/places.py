"""The grid that positions of tokens tell, where tokens lie frame by frame, row by row and column by column."""

from __future__ import annotations

import torch
from torch.utils.weak import WeakIdKeyDictionary

from mccompile.capture.own import mark_of

Counts = tuple[int, int, int]  # frames, height, width in tokens
# What was read of a tensor of positions, with its mark then: pipelines make one tensor for a whole generation, and
# a host that reads it waits for a device.
_read: WeakIdKeyDictionary = WeakIdKeyDictionary()


def counts_placed(places: torch.Tensor, last: bool) -> Counts | None:
    """The frames, rows and columns of a grid whose tokens have these positions; None where they form none.

    places: [..., tokens, 3], or [..., 3, tokens] if `last`; the three numbers of a token say its frame, row and column,
    in any unit. With a last axis of 2, both ends of the token's patch are given (LTX-2). The samples of a call may be
    at different positions in grids of one size. A host read, once for each tensor.
    """
    mark = None if places.is_inference() else mark_of(places)
    known = _read.get(places)
    if known is None or known[0] != mark or mark is None:
        starts = starts_of(places)
        known = _read[places] = mark, _counts(starts.transpose(-1, -2) if last else starts)
    found: Counts | None = known[1]
    return found


def starts_of(places: torch.Tensor) -> torch.Tensor:
    """The positions of tokens, of which some models are given both ends: [..., tokens, 3, 2]."""
    return places[..., 0] if places.dim() == 4 and places.shape[-1] == 2 else places


def _counts(places: torch.Tensor) -> Counts | None:
    """places: [..., tokens, 3]."""
    samples = places.reshape(-1, *places.shape[-2:])
    found = {_of_sample(rows) for rows in samples}
    return found.pop() if len(found) == 1 else None


def _of_sample(rows: torch.Tensor) -> Counts | None:
    """rows: [tokens, 3]."""
    of_frame = _run(rows[:, 0])
    width = _run(rows[:of_frame, 1])
    if len(rows) % of_frame or of_frame % width:
        return None
    counts = len(rows) // of_frame, of_frame // width, width
    grid = rows.unflatten(0, counts)
    for axis in range(3):  # each number changes along its own axis only, and is another one at each place there
        alone = grid[..., axis]
        line = alone.movedim(axis, 0).flatten(1)[:, 0]
        if len(line.unique()) != len(line) or not bool((alone == alone[_first(axis)]).all()):
            return None
    return counts


def _first(axis: int) -> tuple[slice, ...]:
    """The first line of a grid along one axis."""
    return tuple(slice(None) if own == axis else slice(0, 1) for own in range(3))


def _run(values: torch.Tensor) -> int:
    """How many of the first values are equal."""
    other = (values != values[0]).nonzero()
    return int(other[0]) if len(other) else len(values)
