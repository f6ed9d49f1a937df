"""Distances between two moments of a source, against their definitions; and what a decision tells of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import get_args

import pytest
import torch

from mccompile import ir
from mccompile.lowering.expressions import EPS, Leaves, change
from mccompile.lowering.host import AccountRow, ChangeRow, ClockRow, DepthRow, Flag, TableRow, named
from mccompile.lowering.measured import MeasuredRow, told_by
from mccompile.lowering.slots import SourceBefore

AXES = (2, 3, 2, 4)  # samples, chunks, frames, tokens of a frame
CHANNELS = 5
FINER = {
    ir.Granularity.STEP: 1, ir.Granularity.CHUNK: 2, ir.Granularity.FRAME: 3, ir.Granularity.TOKEN: 4,
}  # fmt: skip
Numbers = list[float]


def mean(values: Numbers) -> float:
    return math.fsum(values) / len(values)


def deviation(now: Numbers, before: Numbers) -> float:
    return math.sqrt(mean([(x - mean(now)) ** 2 for x in now]))


def cosine(now: Numbers, before: Numbers) -> float:
    dot = math.fsum(x * y for x, y in zip(now, before, strict=True))
    return 1 - dot / (math.sqrt(math.fsum(x * x for x in now)) * math.sqrt(math.fsum(y * y for y in before)))


DEFINITIONS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "rel_l1": lambda now, before: mean([abs(x - y) for x, y in zip(now, before, strict=True)])
    / mean([abs(y) for y in before]),
    "l1": lambda now, before: mean([abs(x - y) for x, y in zip(now, before, strict=True)]),
    "l2": lambda now, before: math.sqrt(mean([(x - y) ** 2 for x, y in zip(now, before, strict=True)])),
    "deviation": deviation,
    "cosine": cosine,
}


def cells(over: ir.Granularity) -> Iterator[tuple[int, ...]]:
    return product(*(range(size) for size in AXES[: FINER[over]]))


def test_every_distance_has_a_definition() -> None:
    assert set(DEFINITIONS) == set(get_args(ir.Distance))


@pytest.mark.parametrize("over", FINER, ids=str)
@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_distance_is_what_it_is_defined_as(kind: ir.Distance, over: ir.Granularity) -> None:
    generator = torch.Generator().manual_seed(0)
    now, before = (torch.randn(*AXES, CHANNELS, generator=generator) + 0.5 for _ in range(2))
    found = change(kind, now, before, over)
    assert found.shape == tuple(n if i < FINER[over] else 1 for i, n in enumerate(AXES))
    for cell in cells(over):
        wanted = DEFINITIONS[kind](now[cell].flatten().tolist(), before[cell].flatten().tolist())
        assert float(found[cell].reshape(())) == pytest.approx(wanted, rel=2e-5, abs=2e-6)


def test_a_distance_from_nothing_is_a_number() -> None:
    """Where what was before is zero, the distance is large and no division by zero."""
    zero, one = torch.zeros(1, 1, 1, 1, 3), torch.ones(1, 1, 1, 1, 3)
    assert float(change("rel_l1", one, zero, ir.Granularity.STEP)) == pytest.approx(1 / EPS)
    assert float(change("cosine", one, zero, ir.Granularity.STEP)) == 1.0
    small = torch.tensor([EPS**0.5, 0.0, 0.0]).view(1, 1, 1, 1, 3)  # whose square is as small as what is added
    assert float(change("cosine", small, small, ir.Granularity.STEP)) == pytest.approx(0.5)


def test_rows_of_the_host_are_told_by_name() -> None:
    one, other = ir.Table((0.1, 0.2)), ir.Table((0.3,))
    moved = ir.Change("l1", ir.SourceRef("latent"), "step", ir.Granularity.CHUNK)
    rows = (
        Flag("forced"), AccountRow("account"), AccountRow("debt"), ClockRow("step"), TableRow(one), TableRow(other),
        DepthRow(), ChangeRow(moved),
    )  # fmt: skip
    assert named(rows) == ("forced", "account", "account:debt", "step", "table:0", "table:1", "depth", "change:0")


def test_former_values_have_a_name_for_each_moment_and_filter() -> None:
    made = (
        SourceBefore("latent", "step"), SourceBefore("latent", "compute"), SourceBefore("latent", "compute", 2),
        SourceBefore("latent", "step", filter=1),
    )  # fmt: skip
    names = [slot.name for slot in made]
    assert names == [
        "before:latent:step", "before:latent:compute", "before:latent:compute:2", "before:latent:step:filter1",
    ]  # fmt: skip


def test_what_a_decision_tells_is_of_each_chunk() -> None:
    """Accounts by their ends, guards by whether one acted anywhere in the chunk; a fit at its lowest, with the mean of
    what it is fitted to."""
    debt = torch.arange(24.0).reshape(1, 3, 2, 4)
    acted = torch.zeros(1, 3, 2, 4, dtype=torch.bool)
    acted[0, 1, 1, 2] = True
    accounts = {"account": torch.zeros(1, 3, 2, 4), "debt": debt}

    moved = ir.Change("l1", ir.SourceRef("latent"), "step", ir.Granularity.TOKEN)
    fit = ir.Polynomial(moved, (2.0, -1.0))
    signals = {"drift": ir.Signal("drift", moved, ir.Granularity.TOKEN, False)}
    leaves = Leaves({}, {}, {}, {moved: debt}, {}, {}, signals, accounts)

    def told(row: MeasuredRow) -> list[float]:
        return told_by(row, leaves, accounts, {"longest": acted})[0].tolist()

    assert told(MeasuredRow("signal", "drift")) == told(MeasuredRow("fitted", "", fit)) == [3.5, 11.5, 19.5]
    assert told(MeasuredRow("fit", "", fit)) == [-1.0, 15.0, 31.0]

    assert told(MeasuredRow("highest", "debt")) == [7.0, 15.0, 23.0]
    assert told(MeasuredRow("lowest", "debt")) == [0.0, 8.0, 16.0]
    assert told(MeasuredRow("highest")) == told(MeasuredRow("lowest")) == [0.0, 0.0, 0.0]
    assert told(MeasuredRow("guard", "longest")) == [0.0, 1.0, 0.0]
