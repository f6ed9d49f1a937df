"""What a call leaves in a runner: events, phases, late signals, what the graph decided by, and its results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.lowering.measured import MeasuredRow
from mccompile.policy.bind import bind
from mccompile.runtime import runner as module
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import ChunkTime
from mccompile.runtime.decided import ODD
from mccompile.runtime.layout import Layout
from mccompile.runtime.store import BranchStore
from mccompile.runtime.trace import Event
from tests.runtime.test_runner import MOTION, moment, runner


def step(made: Any, *actions: Action, chunks: Any = None, **more: Any) -> Any:
    """A step of which only these parts are there: chunks of one frame of two tokens."""
    times = chunks or tuple(ChunkTime(g, "active", 1) for g in range(len(actions)))
    values: dict[str, Any] = {
        "actions": (actions,), "moment": moment(1, chunks=times, first=3), "layout": Layout(1, len(times), 1, 2),
        "decides": None, "course": BranchStore.empty(made.bounds_in("cond"), 1, len(times)).course, "bound": made.bound,
        "view": "", "group": "", "entry": {}, "inputs": {}, "said": lambda b, g: "", "store": SimpleNamespace(),
    }  # fmt: skip
    return SimpleNamespace(**{**values, **more})


COMPUTE, REUSE, DYNAMIC = (Action(kind, 1, None, f"by {kind}") for kind in ("compute", "reuse", "dynamic"))
SKIP = Action("skip", -1, None, "pending")


@pytest.mark.parametrize(
    ("action", "count", "kind", "why"),
    [
        (COMPUTE, 2, "full", "by compute"), (REUSE, 0, "reuse", "by reuse as told"), (SKIP, 0, "skip", "pending"),
        (DYNAMIC, 1, "partial", "by dynamic as told"), (DYNAMIC, 2, "full", "by dynamic"),
        (DYNAMIC, 0, "reuse", "by dynamic as told"), (COMPUTE, 0, "reuse", "the model's output stands in as told"),
    ],
)  # fmt: skip
def test_what_an_event_says_of_a_chunk(action: Action, count: int, kind: str, why: str) -> None:
    made = runner(expert="transformer")
    copied = ChunkTime(1, "active", 2, copy_of=0)
    of = step(made, SKIP, action, chunks=(ChunkTime(0, "active", 2), copied), said=lambda b, g: " as told", group="a")
    of.moment = moment(1, "uncond", chunks=of.moment.chunks, first=3, sample=4)
    phase = "" if action is SKIP else "fine"
    assert made._event(of, 0, 1, count) == Event(
        "run", 1, "uncond", 4, 0, 5, phase, kind, count, 2, why, "a", "transformer"  # type: ignore[arg-type]
    )


def test_an_event_names_the_first_phase_too() -> None:
    made = runner()
    assert made._event(step(made, Action("compute", 0, None, "")), 0, 0, 2).phase == "warmup"


def test_a_phase_that_ends_with_a_refresh_goes_on_where_nothing_was_computed() -> None:
    made = runner()
    text = MOTION.replace("for 1 step { compute }", "until 1 refreshes { reuse token while motion < 0.5 }")
    own, wanted = bind(load_policy(Source("p.policy", text.replace("BRANCHES", ""))), {}), list[Any]()
    made.engine.video, made.engine.cached_output = (lambda entry: torch.zeros(1)), (lambda env, inputs: None)
    made.engine.observe = SimpleNamespace(spec=SimpleNamespace(params=()), run=lambda want, *_: wanted.append(want))
    for mask in (np.zeros((1, 1, 1, 2), bool), np.array([[[[True, False]]]])):
        made._after(step(made, REUSE, bound=own), {}, mask)
    assert [want.tolist() for want in wanted] == [[[True]]]  # where a token was computed, the next phase follows


def measured(*values: float) -> Any:
    spec = SimpleNamespace(measured=(MeasuredRow("highest"), MeasuredRow("signal", "other")))
    found = np.array(values, np.float32).reshape(1, -1, 1)
    return SimpleNamespace(spec=spec), found


def test_what_the_graph_decided_by_is_kept_with_its_step() -> None:
    """What the rule of another phase reads is not told; without numbers, a chunk is computed for that reason."""
    made = runner(decided=[])
    decide, found = measured(0.25, 9.0, 0.0)
    of = step(made, DYNAMIC, decides=decide)
    of.course.states.measured = found
    assert made._event(of, 0, 0, 1).why == "by dynamic"
    (one,) = made.decided
    assert (one.step, dict(one.values)) == (4, {MeasuredRow("highest"): 0.25})
    of.course.states.measured = np.full_like(found, np.nan)
    assert made._event(of, 0, 0, 2).why == ODD
    for other in (
        step(made, DYNAMIC, decides=None), step(made, REUSE, decides=decide), step(made, COMPUTE, decides=decide),
    ):  # fmt: skip
        other.course.states.measured = found
        assert made._by_graph(other, 0, 0) is None
    of.course.states.measured = None
    assert made._by_graph(of, 0, 0) is None


def test_after_a_call_phases_advance_and_events_follow() -> None:
    made = runner()
    chunks = ChunkTime(0, "active", 0), ChunkTime(1, "finished", 0, clean=True), ChunkTime(2, "pending", 0)
    of = step(made, COMPUTE, COMPUTE, SKIP, chunks=chunks)
    made.engine.video = lambda entry: torch.zeros(1)
    mask = np.array([[[[True, True]], [[True, True]], [[False, False]]]])
    made._after(of, {}, mask)
    assert [(e.chunk, e.action, e.computed) for e in made.events] == [(0, "full", 2), (1, "full", 2), (2, "skip", 0)]
    assert [state.step for state in of.course.history.phases[0]] == [1, 0, 0]
    assert of.course.history.computed.tolist() == [[True, True, False]]
    assert of.course.states.ahead is None


def test_late_signals_are_observed_of_chunks_whose_next_phase_reads_them() -> None:
    made = runner()
    wanted = list[Any]()

    def observe(want: np.ndarray, params: torch.Tensor, output: object, *more: object) -> None:
        wanted.append((want.tolist(), params.tolist(), output))

    made.engine.video = lambda entry: torch.zeros(1)
    made.engine.cached_output = lambda env, inputs: (env, inputs)
    made.engine.observe = SimpleNamespace(spec=SimpleNamespace(params=()), run=observe)
    chunks = (
        ChunkTime(0, "active", 0), ChunkTime(1, "finished", 0), ChunkTime(2, "active", 0),
        ChunkTime(3, "active", 0, copy_of=0),
    )  # fmt: skip
    of = step(made, COMPUTE, COMPUTE, COMPUTE, COMPUTE, chunks=chunks, inputs={"i": 1})
    mask = np.ones((1, 4, 1, 2), bool)
    made._after(of, {"e": 1}, mask)
    assert wanted == [([[True, False, True, False]], [], ({"e": 1}, {"i": 1}))]
    made._wants = {"": {0: False, 1: False}}
    made._after(step(made, COMPUTE), {}, mask[:, :1])
    assert len(wanted) == 1


@pytest.mark.parametrize(("foresees", "device", "ahead"), [
    (True, "cpu", True), (False, "cpu", False), (None, "cpu", False), (None, "cuda", True), (False, "cuda", False),
])  # fmt: skip
def test_the_next_call_is_decided_ahead_where_the_host_would_wait(
    foresees: bool | None, device: str, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "decide_ahead", lambda step, device: ("ahead", device.type))
    made = runner(foresees=foresees)
    made.engine.video = lambda entry: SimpleNamespace(device=SimpleNamespace(type=device))
    of = step(made, COMPUTE)
    made._after(of, {}, np.ones((1, 1, 1, 2), bool))
    assert of.course.states.ahead == (("ahead", device) if ahead else None)


def finishing(**more: Any) -> tuple[Any, Any]:
    """A runner that ends calls of one step, whose results are those of the final layers."""
    made = runner(**more)
    result = torch.ones(2)
    postlude = SimpleNamespace(run=lambda env, shared, inputs: (result, env, shared, inputs))
    made.engine.postlude, made.engine.told_after = postlude, lambda results, env, inputs: {"output": results[0]}
    made.engine.video = lambda entry: torch.zeros(1)
    of = step(made, COMPUTE, shared={"s": 1}, inputs={"i": 2}, store=SimpleNamespace(row=-1, finite=None))
    return made, of


def test_a_call_ends_with_its_results_and_what_is_known_of_them() -> None:
    kept, watched = list[Any](), list[Any]()
    made, of = finishing(watch=SimpleNamespace(called=watched.append))
    made.masks = []
    of.decides = SimpleNamespace(keep_told=lambda *given: kept.append(given), spec=SimpleNamespace(measured=()))
    mask = np.array([[[[True, False]]]])
    other = step(made, COMPUTE, store=of.store, group="b")
    made._told["b"] = made._told[""]
    steps = {"": of, "b": other}
    found = made.finish(steps, {"e": 0}, {"": mask, "b": ~mask})
    assert found[1:] == ({"e": 0}, {"s": 1}, {"i": 2})
    assert kept == [({"output": found[0]}, mask, of.course, of.moment)]
    assert watched == [steps]
    assert (of.store.row, bool(of.store.finite.arrived()[0])) == (1, True)
    assert [m.tolist() for m in made.masks] == [[[[[True, True]]]]]
    assert [(e.region, e.computed) for e in made.events] == [("", 1), ("b", 1)]


def test_where_the_output_of_the_whole_model_is_kept_it_stands_in() -> None:
    """The gap between branches is kept for the other branch, whole where all active chunks were computed."""
    asked, lost = list[Any](), list[Any]()

    def results(*given: Any) -> tuple[torch.Tensor, ...]:
        asked.append(given)
        return (torch.zeros(3),)

    made, of = finishing()
    of.memory, of.active = "memory", lambda: np.array([[[[True, False]]]])
    of.store = SimpleNamespace(row=-1, finite=None, beside=None, returned=None, courses={"": of.course})
    made.engine.whole = SimpleNamespace(
        group="", keep="gap", results=results, weights=lambda *given: ("weights", given)
    )
    mask = np.array([[[[True, False]]]])
    made.finish({"": of}, {"e": 0}, {"": mask})
    env, shared, inputs, given, now, layout, memory, beside, weights = asked[0]
    assert (env, shared, inputs, given is mask, now, layout, memory, beside) == (
        {"e": 0}, {"s": 1}, {"i": 2}, True, of.moment, of.layout, "memory", None
    )  # fmt: skip
    assert weights[0] == "weights"
    assert of.store.returned.output is not None
    of.store.beside = SimpleNamespace(value=torch.ones(1), why="")
    made.finish({"": of}, {}, {"": np.zeros((1, 1, 1, 2), bool)})
    assert asked[1][7].item() == 1.0
    assert of.store.returned.output is None
    assert of.store.beside is None
    of.store.beside, of.course.history.computed[0, 0] = SimpleNamespace(value=None, why="not called"), True
    made.finish({"": of}, {}, {"": mask})
    lost.append(of.course.history.chunk(0, 0).lost)
    assert lost == ["not called"]
    made.engine.whole.keep, of.store.returned = "output", None
    made.finish({"": of}, {}, {"": mask})
    assert of.store.returned is None
