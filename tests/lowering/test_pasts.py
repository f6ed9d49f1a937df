"""Numbers of earlier steps: what a cell finds is of the very steps that computed something of it."""

from __future__ import annotations

import pytest
import torch

from mccompile import ir
from mccompile.lowering.pasts import Pasts

NUMBER = ir.ClockRef("sigma")
SHAPE, STEPS, BACK = (2, 2, 2, 3), 10, 3  # samples, chunks, frames, tokens of a frame
BEGINS = (0, 2)  # the step in which each chunk begins
AXES = {ir.Granularity.CHUNK: (2, 3), ir.Granularity.FRAME: (3,), ir.Granularity.TOKEN: ()}


def rule(cell: ir.Granularity) -> ir.Reuse:
    condition = ir.Apply("lt", (ir.Kept(NUMBER, BACK), ir.Before(NUMBER)))
    return ir.Reuse(cell, condition, None, None, None, None, None, None)


@pytest.mark.parametrize("cell", AXES, ids=str)
def test_earlier_numbers_are_of_the_steps_that_computed_the_cell(cell: ir.Granularity) -> None:
    """The number is the step itself. A chunk that begins has seen this step alone."""
    pasts, generator = Pasts.of(((0, rule(cell)),), {}), torch.Generator().manual_seed(1)
    kept = {slot: torch.full(SHAPE, -1.0) for slot in pasts.slots}
    wanted = {n: torch.full(SHAPE, -1.0) for n in range(BACK + 1)}  # 0: the step before
    for step in range(STEPS):
        since = torch.tensor([step - begin for begin in BEGINS]).view(1, 2, 1, 1)
        active, fresh = (since >= 0) & (since < 7), since == 0
        active, fresh = active.expand(2, 2, 1, 1), fresh.expand(2, 2, 1, 1)
        compute = active & (fresh | (torch.rand(SHAPE, generator=generator) < 0.2))
        now = torch.full(SHAPE, float(step))
        kept = {**kept, **pasts.after({NUMBER: now}, kept.__getitem__, active, compute, fresh)}  # type: ignore[dict-item]
        moved = compute.amax(AXES[cell], keepdim=True) if AXES[cell] else compute
        last = [now, *(wanted[n] for n in range(1, BACK))]
        wanted = {n: torch.where(moved, last[n - 1], wanted[n]) if n else wanted[0] for n in wanted}
        wanted[0] = torch.where(active, now, wanted[0])
        wanted = {n: torch.where(fresh, now, value) for n, value in wanted.items()}
        found = pasts.read(cell, {NUMBER: now}, kept.__getitem__)
        assert torch.equal(found[ir.Before(NUMBER)], wanted[0])
        for n in range(1, BACK + 1):
            assert torch.equal(found[ir.Kept(NUMBER, n)], wanted[n])
    assert len({tuple(value.flatten().tolist()) for value in wanted.values()}) == BACK + 1


def test_a_rule_reads_what_is_kept_by_its_own_cells() -> None:
    both = Pasts.of(((0, rule(ir.Granularity.TOKEN)), (1, rule(ir.Granularity.CHUNK))), {})
    kept = {slot: torch.full((1,), float(number)) for number, slot in enumerate(both.slots)}
    values = {}
    for cell in (ir.Granularity.TOKEN, ir.Granularity.CHUNK, ir.Granularity.STEP):
        found = both.read(cell, {}, kept.__getitem__)  # type: ignore[arg-type]
        values[cell] = {earlier: float(value) for earlier, value in found.items()}
        assert values[cell].keys() == {ir.Before(NUMBER), *(ir.Kept(NUMBER, n) for n in (1, 2, 3))}
    assert values[ir.Granularity.STEP] == values[ir.Granularity.CHUNK]  # a step is decided for each chunk
    token, chunk = values[ir.Granularity.TOKEN], values[ir.Granularity.CHUNK]
    assert {e for e in token if token[e] == chunk[e]} == {ir.Before(NUMBER)}
