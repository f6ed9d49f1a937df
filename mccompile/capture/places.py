"""What positions of tokens tell: a grid, if they lie frame by frame, row by row and column by column; or an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakIdKeyDictionary

from mccompile.capture.own import mark_of

T = TypeVar("T")
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
    return _once(places, "grid", lambda: _counts(_rows_last(places, last)))


def counts_among(places: torch.Tensor, last: bool, start: int, tokens: int) -> Counts | None:
    """As `counts_placed`, of the tokens from `start` on, where others have positions too."""
    return _once(places, f"grid {start} {tokens}", lambda: _counts(_rows_last(places, last).narrow(-2, start, tokens)))


def leading(places: torch.Tensor, start: int, tokens: int) -> int:
    """How many of the tokens from `start` on are those of the image that is made: the first ones of one frame.

    places: [..., rows, 2 to 4], the frame first. An editing model is given images behind: each is of a later frame, and
    begins anew at the place where the first one begins. All tokens where that is not so, or where samples differ. A
    host read, once for each tensor.
    """
    return _once(places, f"image {start} {tokens}", lambda: _leading(places.narrow(-2, start, tokens))) or tokens


def _once(places: torch.Tensor, what: str, read: Callable[[], T]) -> T | None:
    """What is read of a tensor; None where it holds no numbers (it has a shape and no memory)."""
    if isinstance(places, FakeTensor) or places.is_meta:
        return None
    mark = None if places.is_inference() else mark_of(places)
    known = _read.get(places)
    if known is None or known[0] != mark or mark is None:
        known = _read[places] = mark, {}
    if what not in known[1]:
        known[1][what] = read()
    found: T = known[1][what]
    return found


def _rows_last(places: torch.Tensor, last: bool) -> torch.Tensor:
    """[..., tokens, 3]."""
    starts = starts_of(places)
    return starts.transpose(-1, -2) if last else starts


def _leading(places: torch.Tensor) -> int:
    """places: [..., tokens, 2 to 4]."""
    found = {_first_image(rows) for rows in places.reshape(-1, *places.shape[-2:])}
    return found.pop() if len(found) == 1 else places.shape[-2]


def _first_image(rows: torch.Tensor) -> int:
    """rows: [tokens, 2 to 4]."""
    count = len(rows)
    first = _run(rows[:, 0])
    origin, at = rows[:first, 1:].amin(0), first
    while at < count:
        size = _run(rows[at:, 0])
        later, begins = rows[at, 0] > rows[0, 0], rows[at : at + size, 1:].amin(0)
        if not bool(later) or not torch.equal(begins, origin):
            return count
        at += size
    return first


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
