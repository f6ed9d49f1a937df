"""Rows and columns of frames in the decision graph: what lies around each token, and rectangles. All sizes may vary."""

from __future__ import annotations

from typing import Literal

import torch


def around(how: Literal["max", "mean"], value: torch.Tensor, by: int, places: torch.Tensor) -> torch.Tensor:
    """Returns of each token the largest or the mean of `value` within `by` rows and `by` columns of its frame.

    value: [B, G, F, P]. places: [rows, columns] of a frame, of which only the sizes are read. Beyond a frame's edge
    there is nothing: fewer tokens count there.
    """
    frames = value.unflatten(3, (places.size(0), places.size(1)))
    for axis in (3, 4):
        lines = frames.movedim(axis, -1)
        frames = (_largest(lines, by) if how == "max" else _mean(lines, by)).movedim(-1, axis)
    return frames.flatten(3, 4)


def _largest(lines: torch.Tensor, by: int) -> torch.Tensor:
    found, near = lines, torch.nn.functional.pad(lines, (by, by), value=float("-inf"))
    for shift in range(2 * by + 1):
        found = torch.maximum(found, near.narrow(-1, shift, lines.size(-1)))
    return found


def _mean(lines: torch.Tensor, by: int) -> torch.Tensor:
    near, there = (torch.nn.functional.pad(x, (by, by)) for x in (lines, torch.ones_like(lines)))
    total, count = lines * 0.0, lines * 0.0
    for shift in range(2 * by + 1):
        total = total + near.narrow(-1, shift, lines.size(-1))
        count = count + there.narrow(-1, shift, lines.size(-1))
    return total / count


def area(rows: tuple[float, ...], columns: tuple[float, ...], places: torch.Tensor) -> torch.Tensor:
    """Returns 1 for the tokens of a frame whose centre lies in a rectangle, 0 for the others, [1, 1, 1, P] float32.

    rows, columns: from where to where, as shares of the frame's height and width; the end is not included.
    """
    ones = torch.ones_like(places)
    within = None
    for axis, (low, high) in enumerate((rows, columns)):
        centre = (ones.cumsum(axis) - 0.5) / ones.sum(axis, keepdim=True)
        inside = (centre >= low) & (centre < high)
        within = inside if within is None else within & inside
    assert within is not None
    return within.float().flatten().view(1, 1, 1, -1)
