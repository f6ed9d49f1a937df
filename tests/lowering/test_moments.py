"""Sources at earlier moments over a run of steps: what distances compare, against the list of what there was."""

from __future__ import annotations

import torch

from mccompile import ir
from mccompile.lowering.expressions import Leaves, change
from mccompile.lowering.filters import filtered
from mccompile.lowering.moments import Moments, moments_of
from mccompile.lowering.slots import Places, Slot, SourceBefore

LEAVES = Leaves({}, {}, {}, {}, {}, {}, {}, {})
GAIN, OTHER = ir.Apply("add", (ir.Const(1.0), ir.Frequency())), ir.Apply("sub", (ir.Const(1.0), ir.Frequency()))
STEP, ROWS, COLUMNS = ir.Granularity.STEP, 2, 3
PLACES = torch.zeros(ROWS, COLUMNS)
LATENT, OUTPUT = ir.SourceRef("latent"), ir.SourceRef("output")
RISING, FALLING, LOUDER = (ir.SourceRef(n, g) for n, g in (("latent", GAIN), ("latent", OTHER), ("output", GAIN)))


def distance(of: ir.SourceRef, since: str, n: int | None = None, a: ir.PastMoment | None = None) -> ir.Change:
    return ir.Change("l1", of, since, STEP, n, a)  # type: ignore[arg-type]


STEP_AGO, LAST = ir.PastMoment("step", 1), ir.PastMoment("compute", 1)
CHANGES = (
    distance(LATENT, "step"), distance(LATENT, "compute"), distance(LATENT, "compute", 3), distance(LATENT, "zero"),
    distance(LATENT, "step", a=LAST), distance(RISING, "step"), distance(FALLING, "compute", 2),
    distance(FALLING, "zero"), distance(LOUDER, "compute", 2, LAST), distance(OUTPUT, "zero", a=LAST),
)  # fmt: skip


def test_a_distance_reads_two_moments() -> None:
    assert moments_of(CHANGES[0]) == (STEP_AGO,)
    assert moments_of(CHANGES[2]) == (ir.PastMoment("compute", 3),)
    assert moments_of(CHANGES[3]) == ()
    assert moments_of(CHANGES[4]) == (LAST, STEP_AGO)
    assert moments_of(CHANGES[9]) == (LAST,)


def test_what_is_kept_are_all_moments_up_to_the_oldest_through_the_filters() -> None:
    """What the model returned is kept as it is, and filtered when it is compared."""
    moments = Moments.of(CHANGES)
    assert moments.gains == (GAIN, OTHER)
    assert set(moments.slots) == {
        SourceBefore("latent", "step"), *(SourceBefore("latent", "compute", n) for n in (1, 2, 3)),
        SourceBefore("latent", "step", filter=1), *(SourceBefore("latent", "compute", n, 2) for n in (1, 2)),
        *(SourceBefore("output", "compute", n) for n in (1, 2)),
    }  # fmt: skip
    motions = (ir.FrameDiff(LATENT, True), ir.FrameDiff(OUTPUT, True, ir.PastMoment("compute", 2)))
    assert Moments.of((), motions) == Moments(tuple(SourceBefore("output", "compute", n) for n in (1, 2)), ())


class Told:
    """What each source was at each step, and the steps at which each of two chunks was computed."""

    def __init__(self) -> None:
        self.values: dict[str, list[torch.Tensor]] = {"latent": [], "output": []}
        self.computed: tuple[list[int], list[int]] = ([], [])

    def at(self, source: ir.SourceRef, moment: ir.PastMoment | None) -> torch.Tensor:
        """The source as it was. Where nothing is so old, as it was when the chunk began."""
        values, whole = self.values[source.name], []
        for chunk, steps in enumerate(self.computed):
            if moment is None:
                step = len(values) - 1
            elif moment.since == "step":
                step = len(values) - 2
            else:
                step = steps[-moment.n] if len(steps) >= moment.n else 0
            whole.append(values[step][:, chunk : chunk + 1])
        found = torch.cat(whole, 1)
        return found if source.gain is None else filtered(found, source.gain, LEAVES, PLACES)


def test_distances_are_between_what_the_source_was_at_those_moments() -> None:
    """Two chunks that are computed at other steps. What is filtered now is filtered once for all that reads it."""
    generator, moments, told = torch.Generator().manual_seed(0), Moments.of(CHANGES), Told()
    kept: dict[Slot, torch.Tensor] = {s: torch.zeros(1, 2, 1, ROWS * COLUMNS, 3) for s in moments.slots}
    for step in range(8):
        cells = {name: torch.randn(1, 2, 1, ROWS * COLUMNS, 3, generator=generator) for name in told.values}
        for name, value in cells.items():
            told.values[name].append(value)
        now = kept | {Places(): PLACES}
        sources = moments.values(cells, now.__getitem__, LEAVES)  # type: ignore[arg-type]
        for one in CHANGES if step else ():
            first = told.at(one.of, one.a)
            other = first * 0 if one.since == "zero" else told.at(one.of, ir.PastMoment(one.since, one.n or 1))
            assert torch.equal(sources.change(one), change("l1", first, other, STEP)), one
        assert sources.now("latent", 1) is sources.now("latent", 1)
        computes = [step == 0 or step % 2 == 1, step == 0 or step % 3 == 2]
        for steps, computed in zip(told.computed, computes, strict=True):
            steps += [step] if computed else []
        marks = torch.tensor(computes).view(1, 2, 1, 1)
        active, fresh = torch.ones_like(marks), torch.full_like(marks, step == 0)
        kept = {slot: sources.after(slot, active, marks, fresh) for slot in moments.slots}


def test_of_a_chunk_that_is_not_active_nothing_changes() -> None:
    moments = Moments.of((distance(LATENT, "step"), distance(LATENT, "compute", 2)))
    kept: dict[Slot, torch.Tensor] = {s: torch.full((1, 2, 1, 1, 1), float(i)) for i, s in enumerate(moments.slots)}
    now, marks = torch.full((1, 2, 1, 1, 1), 9.0), torch.tensor([True, False]).view(1, 2, 1, 1)
    sources = moments.values({"latent": now}, kept.__getitem__, LEAVES)  # type: ignore[arg-type]
    for number, slot in enumerate(moments.slots):
        fresh = torch.ones_like(marks)
        after = sources.after(slot, marks, marks, fresh).flatten().tolist()
        assert after == [9.0, float(number)]


def test_a_motion_of_an_earlier_step_reads_that_step() -> None:
    motion = ir.FrameDiff(OUTPUT, True, ir.PastMoment("compute", 2))
    moments = Moments.of((), (motion,))
    kept = {s: torch.full((1, 1, 1, 1, 1), float(s.n)) for s in moments.slots}
    sources = moments.values({}, kept.__getitem__, LEAVES)  # type: ignore[arg-type]
    assert float(sources.earlier(motion)) == 2.0
