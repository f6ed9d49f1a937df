"""Running means over a run of steps, against lists of numbers: of the last steps, and smoothed."""

from __future__ import annotations

import math

import pytest
import torch

from mccompile import ir
from mccompile.lowering.expressions import Leaves
from mccompile.lowering.running import ChunkStep, RunningMeans
from mccompile.lowering.slots import Running, Slot

SIGMA = ir.ClockRef("sigma")
LAST, SMOOTH = ir.Average(SIGMA, 3), ir.Smooth(SIGMA, ir.Const(0.75))
SHAPE, BEGINS, ENDS = (1, 2, 1, 2), (0, 2), (9, 6)  # two chunks: the steps in which each begins and is over
NAN = float("nan")


def of_last(values: list[float]) -> float:
    """The value now, and the two before it as far as they are finite."""
    some = [values[-1], *(v for v in values[-3:-1] if math.isfinite(v))]
    return sum(some) / len(some)


def smoothed(values: list[float]) -> float:
    found = values[0]
    for value in values[1:]:
        found = 0.75 * found + 0.25 * value if math.isfinite(found) else value
    return found


def run_of(numbers: list[float], means: RunningMeans) -> list[dict[object, torch.Tensor]]:
    """What is found at each step. A chunk that is not active keeps what it has."""
    kept: dict[Slot, torch.Tensor] = {slot: torch.full(SHAPE, -9.0) for slot in means.slots}
    found = []
    for step, number in enumerate(numbers):
        own = torch.tensor([step - begin for begin in BEGINS]).view(1, 2, 1, 1)
        active = (own >= 0) & (torch.tensor(ENDS).view(1, 2, 1, 1) > step)
        leaves = Leaves({}, {"sigma": torch.tensor(number)}, {}, {}, {}, {}, {}, {})
        told = ChunkStep(own.float(), active, own == 0)
        values, after = means.run(leaves, kept.__getitem__, told, torch.zeros(SHAPE))
        assert after.keys() == kept.keys()
        for slot, value in after.items():
            stays = (torch.where(active, 0.0, one) for one in (value, kept[slot]))
            torch.testing.assert_close(*stays, rtol=0, atol=0, equal_nan=True)
        kept = dict(after)
        found.append(dict(values))
    return found


@pytest.mark.parametrize(
    "numbers", [[1.0, 2.0, 4.0, 8.0, 3.0, 5.0, 6.0, 0.5, 0.25], [1.0, 2.0, NAN, 8.0, 3.0, NAN, NAN, 0.5, 0.25]]
)
def test_means_are_of_the_steps_of_each_chunk(numbers: list[float]) -> None:
    """What is no finite number is left out of the later means, and a chunk's first step has nothing before it."""
    means = RunningMeans.of((LAST, SIGMA, SMOOTH))
    assert means.means == (LAST, SMOOTH)
    assert means.slots == (Running(0, 1), Running(0, 2), Running(1, 0))
    for step, found in enumerate(run_of(numbers, means)):
        for chunk, (begin, end) in enumerate(zip(BEGINS, ENDS, strict=True)):
            if begin <= step < end:
                values = numbers[begin : step + 1]
                for mean, wanted in ((LAST, of_last(values)), (SMOOTH, smoothed(values))):
                    assert found[mean].shape == SHAPE
                    assert found[mean][0, chunk].flatten().tolist() == pytest.approx([wanted] * 2, nan_ok=True)
