"""What the decision graph is fed: what clock and plan know of each chunk, and what earlier calls have told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile import ir
from mccompile.backend.role import Value
from mccompile.language.load import load_policy
from mccompile.lowering.host import AccountRow, ChangeRow, ClockRow, DepthRow, Flag, FlagName, TableRow
from mccompile.lowering.slots import Count, Late, Past, SourceBefore, Tail
from mccompile.lowering.sources import Located, ModelOutput, VideoStream
from mccompile.policy.bind import bind
from mccompile.policy.cells import Cell, Plan
from mccompile.policy.phases import Grid
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.decision import OUTPUT, Decide, Observe, host_rows, keep_state
from mccompile.runtime.layout import Layout
from mccompile.runtime.store import Course, History, States

GRID = Grid(3, (900.0, 600.0, 300.0), (0.9, 0.6, 0.3))
DRIFT = ir.Change("l1", ir.SourceRef("modulation"), "step", ir.Granularity.CHUNK)
FADING = ir.Change("l1", ir.SourceRef("time_embedding"), "step", ir.Granularity.CHUNK)
FLAGS: tuple[FlagName, ...] = ("active", "forced", "reused", "phase", "known", "first", "tail", "fresh")
TIMES = (ChunkTime(0, "finished", 0), ChunkTime(1, "active", 2), ChunkTime(2, "active", 1), ChunkTime(3, "pending", 0))
MOMENT = Moment("run", 3, "cond", GRID, TIMES, 4)
ACTIONS = (
    Action("skip", -1, None, ""), Action("compute", 1, 0.25, ""), Action("reuse", 2, 0.5, "", 1),
    Action("compute", -1, None, ""),
)  # fmt: skip
PLAN: Any = SimpleNamespace(
    cells=[Cell(k, 0, "dynamic", (10.0 + k, 20.0 + k), 0.5, (30.0 + k, 40.0 + k)) for k in range(3)],
    changes=(FADING, DRIFT), accounts=("debt", "loan"),
)  # fmt: skip


def host(*rows: Any, states: States | None = None, actions: Any = (ACTIONS,), depth: float | None = None) -> Any:
    kept = np.array([[True, True, False, True]] * len(actions))
    spec: Any = SimpleNamespace(host=rows)
    plan: Plan = PLAN
    return host_rows(spec, MOMENT, actions, states or States(), plan, kept, depth).tolist()


def test_flags_say_what_is_decided_ahead_of_the_graph() -> None:
    found = dict(zip(FLAGS, host(*map(Flag, FLAGS))[0], strict=True))
    assert found == {
        "active": [0, 1, 1, 1], "forced": [0, 1, 0, 1], "reused": [0, 0, 1, 0], "phase": [-1, 1, 2, -1],
        "known": [0, 1, 1, 0], "first": [1, 0, 0, 0], "tail": [0, 0, 1, 1], "fresh": [0, 0, 1, 0],
    }  # fmt: skip


def test_the_frame_before_a_chunk_is_seen_in_this_call_or_in_an_earlier_one() -> None:
    """Of each sample by itself: in the second one the graph looks at no chunk now, and has looked at chunk 0."""
    skipped = tuple(replace(action, kind="skip") for action in ACTIONS)
    states = States(seen={(1, 0), (0, 3)})
    assert host(Flag("tail"), states=states, actions=(ACTIONS, skipped)) == [[[0, 0, 1, 1]], [[0, 1, 0, 0]]]


def test_clock_plan_and_place_are_told_of_active_chunks() -> None:
    """Chunk 1 is at its own step 2, and chunk 2 at step 1. Of the others there is nothing to tell."""
    rows = (
        AccountRow("account"), AccountRow("loan"), ClockRow("step"), ClockRow("timestep"), DepthRow(),
        TableRow(ir.Table((7.0, 8.0, 9.0))), ChangeRow(DRIFT), ChangeRow(FADING),
    )  # fmt: skip
    assert host(*rows, depth=0.75)[0] == [
        [0, 0.25, 0.5, 0], [0, 42, 41, 0], [0, 2, 1, 0], [0, 300, 600, 0], [0, 0.75, 0.75, 0], [0, 9, 8, 0],
        [0, 22, 21, 0], [0, 12, 11, 0],
    ]  # fmt: skip
    unknown = tuple(replace(action, account=None) for action in ACTIONS)
    assert host(AccountRow("account"), AccountRow("debt"), actions=(unknown,)) == [[[0] * 4, [0] * 4]]


LAYOUT = Layout(1, 2, 1, 2)
NOW = Moment("run", 0, "cond", GRID, (ChunkTime(1, "active", 0), ChunkTime(2, "active", 0)), 3)
STEP, LAST = SourceBefore("output", "step"), SourceBefore("output", "compute")
OLDER = SourceBefore("output", "compute", 2)


def decide(*slots: Any, counts: int = 1, **more: Any) -> Decide:
    where = Located("output", ModelOutput(4), "latent", 2, (1, 1, 1))
    video = Located("embedded", VideoStream(), "tokens", 1, (1, 1, 1))
    spec: Any = SimpleNamespace(
        inputs=slots, outputs=slots, counts=(Count("account"),) * counts, weights=(), sources=(video,),
        told_after=(where,), host=(Flag("active"),), **more,
    )  # fmt: skip
    return Decide(spec, lambda *arguments: ())


@pytest.mark.parametrize(
    ("slots", "counts", "sees"),
    [
        ((Count("account"),), 1, False),
        ((Late("late"),), 1, False),
        ((Count("account"),), 2, True),
        ((SourceBefore("latent", "step"),), 1, True),
        ((Tail("latent"),), 1, True),
        ((Past(0, 0, ir.Granularity.TOKEN),), 1, True),
    ],
)
def test_a_graph_that_measures_or_counts_from_step_to_step_sees_every_step(
    slots: tuple[Any, ...], counts: int, sees: bool
) -> None:
    assert decide(*slots, counts=counts).sees_every_step is sees


def test_states_begin_as_if_nothing_had_been_seen() -> None:
    """Accounts at 0, late signals at 1, and no number where an output was never seen; of all chunks of the video."""
    slots = (Count("account"), Late("late"), STEP, SourceBefore("embedded", "step"), Tail("embedded"),
             SourceBefore("block", "step"))  # fmt: skip
    states, stream = States(), torch.ones(1, 4, 8)
    decide(*slots).states({"embedded": stream, "block": torch.ones(1, 4, 6)}, states, LAYOUT, NOW, torch.device("cpu"))
    account, late, step, before, tail, block = (states.tensors[slot] for slot in slots)
    assert (account.shape, account.sum()) == ((1, 3, 1, 2), 0)
    assert (late.shape, late.sum()) == ((1, 3, 1, 2), 6)
    assert (step.shape, bool(step.isnan().all())) == ((1, 3, 1, 2, 4), True)
    assert (before.shape, before.sum()) == ((1, 3, 1, 2, 8), 0)
    assert (tail.shape, tail.sum()) == ((1, 4, 2, 8), 0)
    assert (block.shape, bool(block.isnan().all())) == ((1, 3, 1, 2, 6), True)
    assert {tensor.dtype for tensor in states.tensors.values()} == {torch.float32}
    states.tensors[Count("account")] += 1
    decide(*slots).states({"embedded": stream}, states, LAYOUT, NOW, torch.device("cpu"))
    assert states.tensors[Count("account")].sum() == 6


def told(value: float) -> torch.Tensor:
    """An output [B, C, frames, rows, columns] of 4 channels: `value` in the first chunk, ten times that in the next."""
    return torch.tensor([value, 10 * value]).view(1, 1, 2, 1, 1).expand(1, 4, 2, 1, 2).double()


def test_what_a_call_has_told_comes_before_what_it_told_earlier() -> None:
    """`since step` at every step, `since compute` at those that computed something: the older ones move back."""
    made, bound = decide(STEP, LAST, OLDER), bind(load_policy("teacache"), {})
    course = Course(History.empty(bound, 1, 3))
    made.states({}, course.states, LAYOUT, NOW, torch.device("cpu"))
    course.history.computed[:] = False
    found = []
    for value, masks in ((1.0, (True, True)), (2.0, (True, False)), (3.0, (False, False))):
        mask = np.array([[[[masks[0], False]], [[masks[1], False]]]])
        made.keep_told({"output": told(value)}, mask, course, NOW)
        course.history.computed[0, 1:] |= masks
        tensors = course.states.tensors
        found.append([tensors[slot][0, 1:, 0, 0, 0].tolist() for slot in (STEP, LAST, OLDER)])
    assert found == [
        [[1, 10], [1, 10], [1, 10]], [[2, 20], [2, 10], [1, 10]], [[3, 30], [2, 10], [1, 10]],
    ]  # fmt: skip
    assert all(bool(tensor[0, 0].isnan().all()) for tensor in course.states.tensors.values())


def test_only_chunks_at_their_own_steps_tell_something() -> None:
    made, bound = decide(STEP), bind(load_policy("teacache"), {})
    course = Course(History.empty(bound, 1, 4))
    moment = replace(NOW, chunks=(ChunkTime(1, "finished", 0), ChunkTime(3, "active", 0, copy_of=1)), total=4)
    made.states({}, course.states, LAYOUT, moment, torch.device("cpu"))
    made.keep_told({"output": told(1.0)}, np.ones((1, 2, 1, 2), bool), course, moment)
    assert course.states.tensors[STEP].isnan().all()
    made.keep_told({}, np.ones((1, 2, 1, 2), bool), course, NOW)
    assert course.states.tensors[STEP].isnan().all()
    later = replace(moment, chunks=(ChunkTime(1, "finished", 0), ChunkTime(2, "active", 0)))
    made.keep_told({"output": told(1.0)}, np.ones((1, 2, 1, 2), bool), course, later)
    assert course.states.tensors[STEP][0, :, 0, 0, 0].isnan().tolist() == [True, True, False, True]
    course.states.tensors.clear()  # a branch that follows another one has no states
    made.keep_told({"output": told(1.0)}, np.ones((1, 2, 1, 2), bool), course, NOW)
    assert not course.states.tensors


def test_a_part_of_a_state_is_put_into_its_place_and_a_whole_one_replaces_it() -> None:
    slot, states = Count("account"), States()
    states.tensors[slot] = before = torch.zeros(1, 4, 1, 1)
    keep_state(states, slot, 1, torch.ones(1, 2, 1, 1))
    assert before.flatten().tolist() == [0, 1, 1, 0]
    whole = torch.full((1, 4, 1, 1), 2.0)
    keep_state(states, slot, 0, whole)
    assert states.tensors[slot] is whole


def test_late_signals_are_observed_of_the_chunks_that_want_it() -> None:
    """The graph is told which want it, which is the first of the video, and whose predecessor was observed."""
    seen: list[torch.Tensor] = []

    def graph(host: torch.Tensor, params: Value, output: Value, tail: torch.Tensor, late: torch.Tensor) -> Any:
        seen.extend((host, tail, late))
        return tail + 1, late + 1

    states, layout = States(observed={(1, 0)}), Layout(2, 2, 1, 2)
    spec: Any = SimpleNamespace(signals=("motion",))
    want = np.array([[True, False], [False, True]])
    observe = Observe(spec, graph)
    assert observe.spec is spec
    observe.run(want, torch.zeros(1), torch.ones(2, 4, 8), states, layout, NOW)
    host, tail, late = seen
    assert host.tolist() == [[[1, 0], [0, 0], [0, 1]], [[0, 1], [0, 0], [1, 0]]]  # want, first, tail
    assert (tail.shape, late.shape) == ((2, 3, 2, 8), (2, 2, 1, 2))
    assert states.observed == {(1, 0), (0, 1), (1, 2)}
    assert states.tensors[OUTPUT][:, :, 0, 0].tolist() == [[0, 1, 1, 1]] * 2
    assert states.tensors[Late("motion")][:, :, 0, 0].tolist() == [[1, 2, 2]] * 2
    first = replace(NOW, chunks=(ChunkTime(0, "active", 0), ChunkTime(1, "active", 0)))
    Observe(spec, graph).run(want, torch.zeros(1), torch.ones(2, 4, 8), states, layout, first)
    assert seen[3][:, 1].tolist() == [[1, 0], [1, 0]]
