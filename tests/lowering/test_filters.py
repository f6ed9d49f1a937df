"""Filters over the frequencies of an axis, against Fourier transforms; and graphs of what they do not take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mccompile import ir
from mccompile.lowering.expressions import Leaves, evaluate
from mccompile.lowering.filters import filtered

LEAVES = Leaves({}, {}, {}, {}, {}, {}, {}, {})
ONE, FREQUENCY = ir.Const(1.0), ir.Frequency()
RISING = ir.Apply("add", (ONE, FREQUENCY))


GAINS: dict[str, tuple[ir.Expr, Callable[[torch.Tensor], torch.Tensor]]] = {
    "all alike": (ONE, torch.ones_like),
    "rising": (RISING, lambda f: 1 + f),
    "falling": (ir.Apply("div", (ONE, ir.Apply("mul", (RISING, RISING)))), lambda f: 1 / (1 + f) ** 2),
}


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("sizes", [(3, 4, 5), (1, 2, 1), (2, 1, 6)])
def test_a_filter_weights_the_frequencies_of_each_axis(name: str, sizes: tuple[int, int, int]) -> None:
    """The gain of an axis is divided by its mean, and each chunk is filtered by itself."""
    gain, weights = GAINS[name]
    _, rows, columns = sizes
    value = torch.randn(2, 3, *sizes, 2, generator=torch.Generator().manual_seed(0))
    wanted = value
    for axis, size in zip((2, 3, 4), sizes, strict=True):
        of_axis = weights(torch.fft.fftfreq(size).abs())
        shape = [size if a == axis else 1 for a in range(value.dim())]
        spectrum = torch.fft.fft(wanted, dim=axis) * (of_axis / of_axis.mean()).reshape(shape)
        wanted = torch.fft.ifft(spectrum, dim=axis).real
    found = filtered(value.flatten(3, 4), gain, LEAVES, torch.zeros(rows, columns))
    torch.testing.assert_close(found, wanted.flatten(3, 4), rtol=1e-4, atol=1e-5)


def test_a_gain_by_the_clock_is_that_of_each_chunk() -> None:
    gain = ir.Apply("add", (ONE, ir.Apply("mul", (ir.ClockRef("sigma"), FREQUENCY))))
    value, places = torch.randn(1, 2, 3, 6, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 3)

    def under(*sigmas: float) -> Leaves:
        return replace(LEAVES, clock={"sigma": torch.tensor(sigmas).view(1, -1, 1, 1)})

    found = filtered(value, gain, under(0.5, 4.0), places)
    for chunk, sigma in enumerate((0.5, 4.0)):
        alone = filtered(value[:, chunk : chunk + 1], gain, under(sigma), places)
        torch.testing.assert_close(found[:, chunk : chunk + 1], alone)


@pytest.mark.parametrize(
    ("expr", "cause"),
    [
        (FREQUENCY, "a frequency outside the gain of a filter"),
        (ir.Area((0.0, 1.0), (0.0, 1.0)), "the rows and columns of a frame, where the graph does not take them"),
        (ir.SourceRef("latent"), "source latent outside a change or a frame difference"),
    ],
)
def test_what_a_graph_does_not_have_is_no_value(expr: ir.Expr, cause: str) -> None:
    with pytest.raises(KeyError, match=cause):
        evaluate(expr, LEAVES)
