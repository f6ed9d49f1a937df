"""What positions of tokens tell: a grid, if they lie frame by frame, row by row and column by column; or an image.

What a video is given may lie behind its grid: frames of a reference begin anew, a keyframe is of an earlier time.
"""

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

    Where all of them form none, it is the grid of the first ones: two frames or more at the same places, one after the
    other; what lies behind is not the next frame. Where both ends of tokens are given, a frame begins where the last
    one ends.

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
    """[..., tokens, 3], or [..., tokens, 6] where both ends are given: the starts, then the ends."""
    ends = places.unbind(-1) if starts_of(places) is not places else (places,)
    return torch.cat([x.transpose(-1, -2) if last else x for x in ends], -1)


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
    """places: [..., tokens, 3 or 6]."""
    samples = places.reshape(-1, *places.shape[-2:])
    found = {_of_sample(rows) for rows in samples}
    return found.pop() if len(found) == 1 else None


def _of_sample(rows: torch.Tensor) -> Counts | None:
    """rows: [tokens, 3 or 6]."""
    whole = _grid(rows)
    if whole is not None:
        return whole
    of_frame, frames = _run(rows[:, 0]), 1
    while _follows(rows[(frames - 1) * of_frame : (frames + 1) * of_frame], of_frame):
        frames += 1
    tokens = frames * of_frame
    behind = tokens < len(rows) and not _next(rows[tokens - 1], rows[tokens])
    return _grid(rows[:tokens]) if frames > 1 and behind else None


def _follows(rows: torch.Tensor, of_frame: int) -> bool:
    """Whether the second of two frames comes after the first, and its tokens are at the same places."""
    one, two = rows[:of_frame], rows[of_frame:]
    same = len(two) == of_frame and torch.equal(one[:, 1:3], two[:, 1:3])
    return same and bool((two[:, 0] == two[0, 0]).all()) and _next(one[0], two[0])


def _next(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether the frame of a token is the next one, of all that is known: it is later, or begins at the other's end."""
    return bool(two[0] == one[3] if len(one) > 3 else two[0] > one[0])


def _grid(rows: torch.Tensor) -> Counts | None:
    """rows: [tokens, 3 or 6]."""
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
