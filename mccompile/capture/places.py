"""The grid that positions of tokens tell, where tokens lie frame by frame, row by row and column by column."""

from __future__ import annotations

import torch
from torch.utils.weak import WeakIdKeyDictionary

Counts = tuple[int, int, int]  # frames, height, width in tokens
# What was read of a tensor of positions, with its version then: pipelines make one tensor for a whole generation, and
# a host that reads it waits for a device.
_read: WeakIdKeyDictionary = WeakIdKeyDictionary()


def counts_placed(places: torch.Tensor, last: bool) -> Counts | None:
    """The frames, rows and columns of a grid whose tokens have these positions; None where they form none.

    places: [..., tokens, 3], or [..., 3, tokens] if `last`; the three numbers of a token say its frame, row and column,
    in any unit. All samples have the same positions. A host read, once for each tensor.
    """
    version = None if places.is_inference() else places._version
    known = _read.get(places)
    if known is None or known[0] != version or version is None:
        known = _read[places] = version, _counts(places.transpose(-1, -2) if last else places)
    found: Counts | None = known[1]
    return found


def _counts(places: torch.Tensor) -> Counts | None:
    """places: [..., tokens, 3]."""
    samples = places.reshape(-1, *places.shape[-2:])
    rows = samples[0]
    if len(rows) < 1 or not bool((samples == rows).all()):
        return None
    of_frame = _run(rows[:, 0])
    width = _run(rows[:of_frame, 1])
    if len(rows) % of_frame or of_frame % width:
        return None
    counts = len(rows) // of_frame, of_frame // width, width
    grid = rows.unflatten(0, counts)
    alone = [
        bool((grid[..., axis] == grid.select(-1, axis)[tuple(_first(axis))]).all())  # along its own axis only
        for axis in range(3)
    ]
    values = [grid[:, 0, 0, 0], grid[0, :, 0, 1], grid[0, 0, :, 2]]
    return counts if all(alone) and all(len(v.unique()) == len(v) for v in values) else None


def _first(axis: int) -> list[slice]:
    """The first plane of a grid along the two axes that are not `axis`."""
    return [slice(None) if own == axis else slice(0, 1) for own in range(3)]


def _run(values: torch.Tensor) -> int:
    """How many of the first values are equal."""
    other = (values != values[0]).nonzero()
    return int(other[0]) if len(other) else len(values)
