"""Places of a frame: what lies around each token, and rectangles, against loops over rows and columns."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from mccompile.lowering.frames import area, around


def near(at: int, by: int, size: int) -> range:
    return range(max(0, at - by), min(size, at + by + 1))


@pytest.mark.parametrize("how", ["max", "mean"])
@pytest.mark.parametrize(("rows", "columns", "by"), [(3, 4, 1), (1, 5, 2), (4, 1, 1), (2, 2, 5), (3, 3, 0)])
def test_what_lies_around_a_token(how: Literal["max", "mean"], rows: int, columns: int, by: int) -> None:
    """Of each frame alone, and beyond its edge there is nothing; so negative values do not meet a 0."""
    value = torch.randn(2, 1, 2, rows * columns, generator=torch.Generator().manual_seed(0)) - 5
    found = around(how, value, by, torch.zeros(rows, columns))
    assert found.shape == value.shape
    frames = value.reshape(4, rows, columns)
    for frame, made in zip(frames, found.reshape(4, rows, columns), strict=True):
        for row in range(rows):
            for column in range(columns):
                some = frame[list(near(row, by, rows))][:, list(near(column, by, columns))]
                wanted = some.max() if how == "max" else some.mean()
                torch.testing.assert_close(made[row, column], wanted)


@pytest.mark.parametrize(
    ("within", "wanted"),
    [
        (((0.0, 1.0), (0.0, 1.0)), [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (((0.0, 0.5), (0.0, 1.0)), [[1, 1, 1, 1], [0, 0, 0, 0]]),
        (((0.25, 0.75), (0.125, 0.625)), [[1, 1, 0, 0], [0, 0, 0, 0]]),  # an end is not included, a beginning is
        (((0.26, 1.0), (0.13, 0.7)), [[0, 0, 0, 0], [0, 1, 1, 0]]),
        (((0.0, 1.0), (0.3, 0.3)), [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_a_rectangle_has_the_tokens_whose_centre_lies_in_it(
    within: tuple[tuple[float, ...], tuple[float, ...]], wanted: list[list[int]]
) -> None:
    found = area(*within, torch.zeros(2, 4))
    assert found.dtype == torch.float32
    assert found.shape == (1, 1, 1, 8)
    assert found.view(2, 4).tolist() == wanted
