"""What one request keeps, taken as plain data and put back into another process: nothing of it is another."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile.language.load import load_policy
from mccompile.lowering.slots import Count, Late
from mccompile.policy.bind import bind
from mccompile.policy.phases import Grid, advance, start
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.decision import OUTPUT
from mccompile.runtime.finite import OnItsWay
from mccompile.runtime.request import Request
from mccompile.runtime.snapshot import Snapshot, restore, size_of, take
from mccompile.runtime.staging import Staging
from mccompile.runtime.store import BranchStore, Recent, Window

BOUND = bind(load_policy("teacache"), {})
GRID = Grid(3, (900.0, 600.0, 300.0), (0.9, 0.6, 0.3))
MOMENT = Moment("run", 3, "cond", GRID, (ChunkTime(0, "active", 2), ChunkTime(1, "active", 0)), 2)
CPU = torch.device("cpu")


class Runner:
    """What a snapshot asks of a runner. slots: that its graphs keep."""

    def __init__(self, staging: Staging | None = None) -> None:
        spec = SimpleNamespace(inputs=(Count("account"),), outputs=())
        self.settled = 0
        blocks = SimpleNamespace(staging=staging, settle=self.settle)
        observe = SimpleNamespace(spec=SimpleNamespace(signals=("motion",)))
        self.engine = SimpleNamespace(
            blocks=blocks, observe=observe, decides={"": SimpleNamespace(spec=spec), "clock": None}
        )
        self.requests: dict[str, Request] = {}

    def settle(self) -> None:
        self.settled += 1

    def resume(self, moment: Moment, branches: dict[str, BranchStore], trusted: bool) -> None:
        self.requests[str(moment.request)] = request = Request(branches)
        request.foresight.trusted = trusted


def store() -> BranchStore:
    """Something in every place."""
    made = BranchStore.empty({"": BOUND, "rear": BOUND}, 2, 2)
    made.row, made.window = 2, Window(((0, False), (1, False), (1, True)), 4, ((2, 3), 5, None, True, "x", 0.5))
    memory = made.memory
    memory.buffers = {3: (torch.rand(2, 4), torch.rand(4, 2).t()), 5: (torch.rand(1),)}
    memory.chosen = {3: (torch.rand(2), torch.rand(3))}
    memory.kept, memory.outputs = {(0, "x"): torch.rand(2), (1, "x"): torch.rand(2)}, torch.rand(3)
    memory.older = {(0, "x"): (torch.rand(2), torch.rand(2))}
    memory.passed = {(1, "x"): (torch.rand(2), torch.rand(2), torch.rand(2))}
    for number, course in enumerate(made.courses.values()):
        history, states = course.history, course.states
        history.phases[1][number] = advance(BOUND, start(BOUND), GRID, True)
        history.computed[0, number], history.cleaned[1, number], history.planned[1, 1] = True, True, False
        history.since[0] = [number, 4]
        history.lost[1, 0], history.copies = f"another prompt {number}", {(0, 1), (1, number)}
        history.recent = {
            (0, 1, False): Recent(np.array([[[number, 3]], [[0, 1]]])), (0, 1, True): Recent(np.array([[[7, 8]]])),
        }  # fmt: skip
        states.tensors = {Count("account"): torch.rand(2), Late("motion"): torch.rand(3), OUTPUT: torch.rand(1)}
        states.seen, states.observed = {(0, number)}, {(1, number), (0, 0)}
        states.selection = (np.arange(8) % 3 == number).reshape(2, 4).T
    return made


def runner() -> Runner:
    found = Runner()
    found.requests["run"] = Request({"cond": store(), "uncond": store()})
    found.requests["run"].foresight.trusted = False
    return found


def facts(of: BranchStore) -> Any:
    """Everything but tensors, which `tensors` gives."""
    blocks = of.memory.buffers.keys(), of.memory.chosen.keys()
    return of.row, of.window, blocks, of.memory.older.keys(), of.memory.passed.keys(), [
        (name, c.history.phases, c.history.computed.tolist(), c.history.cleaned.tolist(), c.history.planned.tolist(),
         c.history.since.tolist(), c.history.since.dtype, c.history.computed.dtype, c.history.lost, c.history.copies,
         {at: one.steps.tolist() for at, one in c.history.recent.items()}, c.states.seen, c.states.observed,
         c.states.tensors.keys(), np.array(c.states.selection).tolist())
        for name, c in of.courses.items()
    ]  # fmt: skip


def tensors(of: BranchStore) -> list[torch.Tensor]:
    memory = of.memory
    assert memory.outputs is not None
    parts = (
        *memory.buffers.values(),
        *memory.chosen.values(),
        *memory.older.values(),
        *memory.passed.values(),
        memory.kept.values(),
    )
    states = (course.states.tensors.values() for course in of.courses.values())
    return [t for part in (*parts, *states) for t in part] + [memory.outputs]


def test_what_was_taken_is_put_back_as_it_was() -> None:
    own, other = runner(), Runner()
    taken = take(own, MOMENT)  # type: ignore[arg-type]
    assert taken is not None
    assert all(tensor.is_contiguous() for tensor in taken.tensors)
    assert own.settled == 1  # else the host would read what is still on its way
    restore(other, MOMENT, taken, CPU)  # type: ignore[arg-type]
    found = other.requests["run"]
    assert not found.foresight.trusted
    assert found.branches.keys() == {"cond", "uncond"}
    for name, made in found.branches.items():
        before = own.requests["run"].branches[name]
        assert facts(made) == facts(before)
        for one, two in zip(tensors(made), tensors(before), strict=True):
            assert torch.equal(one, two)
            assert (one.stride(), one.data_ptr() == two.data_ptr()) == (two.stride(), False)
    assert size_of(own, MOMENT) == 2 * store().nbytes()  # type: ignore[arg-type]
    assert size_of(Runner(), MOMENT) == 0  # type: ignore[arg-type]


def test_where_there_is_no_state_to_go_on_from_none_is_taken() -> None:
    assert take(Runner(), MOMENT) is None  # type: ignore[arg-type]
    for case in ("empty", "pending", "samples", "increments", "window", "finite"):
        found = runner()
        request = found.requests["run"]
        one = request.branches["uncond"]
        match case:
            case "empty":
                request.branches.clear()
            case "pending":
                request.foresight.pending = SimpleNamespace()  # type: ignore[assignment]
            case "samples":
                request.of(1)
            case "increments":
                one.memory.increments[0] = torch.ones(1)
            case "window":
                one.window = None
            case "finite":
                one.finite = OnItsWay((torch.tensor(False),), None)
        assert take(found, MOMENT) is None, case  # type: ignore[arg-type]


def test_tensors_that_lay_in_host_memory_go_home_again() -> None:
    """Those of blocks; states of decisions go to the device."""
    own, staging = runner(), Staging(CPU)
    homes: list[torch.Tensor] = []
    staging.home = lambda tensor: homes.append(tensor) or tensor  # type: ignore[method-assign, func-returns-value]
    taken = take(own, MOMENT)  # type: ignore[arg-type]
    assert taken is not None
    restore(Runner(staging), MOMENT, taken, CPU)  # type: ignore[arg-type]
    assert len(homes) == 2 * (3 + 2 + 2 + 2 + 3 + 1)
    homes.clear()
    away = [replace(b, tensors=tuple(replace(t, host=False) for t in b.tensors)) for b in taken.facts.branches]
    restore(Runner(staging), MOMENT, replace(taken, facts=replace(taken.facts, branches=tuple(away))), CPU)  # type: ignore[arg-type]
    assert not homes


def changed(taken: Snapshot, place: tuple[str, ...], into: tuple[str, ...]) -> Snapshot:
    """The snapshot with the tensor of one place at another one."""
    (branch, *more) = taken.facts.branches
    made = tuple(replace(t, place=into) if t.place == place else t for t in branch.tensors)
    assert made != branch.tensors
    return replace(taken, facts=replace(taken.facts, branches=(replace(branch, tensors=made), *more)))


@pytest.mark.parametrize(
    ("place", "into", "why"),
    [
        (("buffer", "3", "1"), ("buffer", "3", "2"), "what block 3 keeps is not in order"),
        (("older", "0", "x", "1"), ("older", "0", "x", "0"), "earlier results of region 0 are not in order"),
        (("passed", "1", "x", "1"), ("passed", "1", "x", "4"), "earlier results of region 1 are not in order"),
        (("outputs",), ("outputs", "0"), r"it has no place \('outputs', '0'\)"),
        (("state", "", "state:account"), ("state", "", "late:other"), "it has no place"),
        (("state", "", "state:account"), ("state", "front", "state:account"), "it has no place"),
        (("recent", "", "0", "1", "0"), ("recent", "front", "0", "1", "0"), "it has no place"),
        (("selection", ""), ("selection", "front"), "it has no place"),
    ],
)
def test_a_snapshot_that_names_other_places_is_refused(place: tuple[str, ...], into: tuple[str, ...], why: str) -> None:
    taken = take(runner(), MOMENT)  # type: ignore[arg-type]
    assert taken is not None
    with pytest.raises(ValueError, match=why):
        restore(Runner(), MOMENT, changed(taken, place, into), CPU)  # type: ignore[arg-type]


def test_a_snapshot_without_all_that_it_names_is_refused() -> None:
    taken = take(runner(), MOMENT)  # type: ignore[arg-type]
    assert taken is not None
    with pytest.raises(ValueError, match="fewer tensors than it names"):
        restore(Runner(), MOMENT, replace(taken, tensors=taken.tensors[:-1]), CPU)  # type: ignore[arg-type]
    (branch, *more) = taken.facts.branches
    (course, *others) = branch.courses
    for less in ({"computed": course.computed[:1]}, {"since": ((0,), (0,))}, {"phases": course.phases[:1]}):
        odd = replace(branch, courses=(replace(course, **less), *others))
        facts = replace(taken.facts, branches=(odd, *more))
        with pytest.raises(ValueError, match="not one history for each chunk"):
            restore(Runner(), MOMENT, replace(taken, facts=facts), CPU)  # type: ignore[arg-type]
