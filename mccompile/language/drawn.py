"""Masks of a frame that are drawn in a file, one text a row: `#` is inside, `.` is outside.

before: rows = ["....", ".##.", ".##."]
after:  one rectangle from 1/3 to 1 of the height and from 1/4 to 3/4 of the width
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

MOST_RECTANGLES = 64
"""Of a mask: each is a few comparisons in the graph."""
MOST_PLACES = 256
"""Rows, and columns, of a mask: a frame of a video has no more tokens along a side."""
_INSIDE, _OUTSIDE = "#", "."

Rectangle = tuple[float, float, float, float]
"""From and to along the height, from and to along the width, as shares of them."""


def rectangles(rows: object) -> tuple[Rectangle, ...]:
    """The rectangles, none of which meets another, that a drawn mask is made of.

    Raises ValueError with the reason where it is no mask of a frame: no rows of one length, the same sign everywhere,
    too large, or made of too many rectangles.
    """
    if not isinstance(rows, list) or not rows or not all(isinstance(row, str) and row for row in rows):
        raise ValueError("has no `rows` of `#` and `.`")
    if len({len(row) for row in rows}) > 1:
        raise ValueError("has rows of different lengths")
    signs = {sign for row in rows for sign in row}
    if not signs <= {_INSIDE, _OUTSIDE}:
        raise ValueError(f"is drawn with `{min(signs - {_INSIDE, _OUTSIDE})}`, and not with `#` and `.` alone")
    if len(signs) == 1:
        raise ValueError("is the same everywhere")
    if len(rows) > MOST_PLACES or len(rows[0]) > MOST_PLACES:
        raise ValueError(f"has more than {MOST_PLACES} rows or columns")
    found = tuple(_rectangles(rows))
    if len(found) > MOST_RECTANGLES:
        raise ValueError(f"is made of {len(found)} rectangles, and {MOST_RECTANGLES} are the most: draw it coarser")
    return found


def _rectangles(rows: list[str]) -> Iterator[Rectangle]:
    """Those of neighbouring rows that are alike, from above."""
    first = 0
    for row, alike in groupby(rows):
        last, column = first + len(list(alike)), 0
        for sign, run in groupby(row):
            end = column + len(list(run))
            if sign == _INSIDE:
                yield first / len(rows), last / len(rows), column / len(row), end / len(row)
            column = end
        first = last
