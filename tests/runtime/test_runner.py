"""What a runner does by itself: which requests it keeps, what it frees, and the events that calls leave."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.lowering.measured import MeasuredRow
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.phases import Grid
from mccompile.runtime import runner as module
from mccompile.runtime.clock import ChunkTime, Moment, Told
from mccompile.runtime.finite import OnItsWay
from mccompile.runtime.layout import Layout
from mccompile.runtime.pair import Foresight
from mccompile.runtime.runner import EVENTS_KEPT, Runner
from mccompile.runtime.store import BranchStore, Window
from mccompile.runtime.trace import Event, Log

GRID = Grid(4, (900.0, 600.0, 300.0, 100.0), (0.9, 0.6, 0.3, 0.1))
MOTION = """policy p {
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for 1 step { compute }
  phase fine { reuse token while motion < 0.5 }
  layers blocks[*] { keep residual } BRANCHES
}"""


def bound(branches: str = "") -> BoundPolicy:
    return bind(load_policy(Source("p.policy", MOTION.replace("BRANCHES", branches))), {})


def moment(row: int = 0, branch: str = "cond", **more: Any) -> Moment:
    chunks = more.pop("chunks", (ChunkTime(0, "active", row),))
    return Moment(more.pop("request", "run"), row, branch, GRID, chunks, more.pop("total", len(chunks)), **more)


def runner(branches: str = "", **more: Any) -> Any:
    """One of which only these parts are there; what it asks of the engine's values is noted in `asked`."""
    made, policy = object.__new__(Runner), bound(branches)
    asked = list[str]()
    values = SimpleNamespace(forget_values=lambda: asked.append("values"), forget=lambda: asked.append("all"))
    vars(made).update(
        lowered=SimpleNamespace(policy=policy.ir), bound=policy, _bounds_in={}, log=Log(), requests={}, latest=None,
        _odd_left=0, engine=SimpleNamespace(values=values, observe=None, whole=None), budget=None, pairing=None,
        goes_on=False, notes=("old",), decided=["old"], first_step=0, last_step=0, expert="", fold=True, watch=None,
        foresees=False, _wants={"": {0: False, 1: True}}, _told={"": {1: frozenset({MeasuredRow("highest")})}},
        asked=asked,
    )  # fmt: skip
    vars(made).update(more)
    return made


def store(made: Any, odd: bool = False, row: int = 0, chunks: int = 1) -> BranchStore:
    found = BranchStore.empty(made.bounds_in("cond"), 1, chunks)
    found.row = row
    found.finite = OnItsWay((torch.tensor(not odd),), None)
    return found


def event(request: str = "run", tokens: int = 6) -> Event:
    return Event(request, 0, "cond", 0, 0, 0, "", "full", tokens, tokens, "")


def test_a_new_request_begins_with_nothing_of_the_last_one() -> None:
    made = runner()
    first = made._request(moment(first=2))
    assert (made.latest, made.first_step, made.last_step) == ("run", 2, 5)
    assert (made.notes, made.decided, made.asked) == ((), [], ["values"])
    made.notes, made.decided = ("note",), ["one"]
    assert made._request(moment(1)) is first
    assert (made.notes, made.decided, made.asked) == (("note",), ["one"], ["values"])
    made.goes_on = True
    made._request(moment(request="next"))
    assert (made.latest, made.notes, made.decided) == ("next", ("note",), ["one"])
    sample = made._request(moment(sample=2))
    assert sample is first.others[2]


def test_stores_of_the_latest_requests_stay_and_of_one_where_there_is_a_budget() -> None:
    made = runner()
    for name in ("a", "b", "a", "c"):
        made._request(moment(request=name))
    assert list(made.requests) == ["a", "c"]
    made = runner(budget=object())
    for name in ("a", "b"):
        made._request(moment(request=name))
    assert list(made.requests) == ["b"]


def test_events_of_earlier_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_KEPT", 2)
    made = runner()
    made.log.events.extend(event(tokens=n) for n in range(5))
    made._request(moment())
    assert [e.tokens for e in made.events] == [3, 4]
    made.log.events.extend(event(tokens=n) for n in range(5))
    made._request(moment(1))
    assert len(made.events) == 7
    assert EVENTS_KEPT >= 10_000  # a run of some hundred calls keeps all of its own


def test_results_that_were_not_finite_are_counted_over_a_generation() -> None:
    made = runner()
    assert made.not_finite() == 0
    made._request(moment()).branches = {"cond": store(made, odd=True), "uncond": store(made)}
    assert made.not_finite() == 1
    made.goes_on = True
    made._request(moment(request="next")).branches = {"cond": store(made, odd=True)}
    assert made.not_finite() == 2
    made.leave("next")
    assert (made.not_finite(), "next" in made.requests) == (2, False)
    made.leave("next")
    assert made.not_finite() == 2
    made.goes_on = False
    made._request(moment(request="other"))
    assert made.not_finite() == 0


def test_clearing_frees_everything() -> None:
    made = runner()
    made._request(moment())
    made.log.events.append(event())
    made.decided.append("one")
    made.asked.clear()
    made._odd_left = 3
    made.clear()
    assert (made.events, made.decided, made.requests, made.not_finite(), made.asked) == ([], [], {}, 0, ["all"])


def test_other_parameters_hold_for_the_next_requests() -> None:
    made = runner()
    made._request(moment())
    before = made.bounds_in("cond")
    assert made.bounds_in("cond") is before
    assert set(before) == {""}
    own = made.bound
    made.rebind(bound())
    assert made.bound is not own
    assert (made.bound.ir is made.lowered.policy, set(made.bounds), made.requests) == (True, {""}, {})
    assert made.bounds_in("cond") is not before


def test_what_was_derived_from_the_weights_is_derived_anew() -> None:
    made = runner()
    request = made._request(moment())
    for each in (request, request.of(1)):
        each.planned["cond"], each.foresight.trusted = {}, False
        each.branches["cond"] = kept = store(made)
        kept.course.history.computed[0, 0] = True
    made.asked.clear()
    made.weights_changed()
    assert made.asked == ["all"]
    for each in (request, request.of(1)):
        assert (each.planned, each.foresight.trusted) == ({}, True)
        history = each.branches["cond"].course.history
        assert (bool(history.computed.any()), history.chunk(0, 0).lost) == (False, "other weights")


def test_a_call_that_raised_leaves_nothing_half_made() -> None:
    made = runner()
    request = made._request(moment())
    for each in (request, request.of(1)):
        each.branches["cond"] = kept = store(made)
        kept.course.history.computed[0, 0] = True
    request.foresight = foresight = Foresight()

    def fails(*_: object) -> None:
        raise KeyError

    made.begin = fails
    with pytest.raises(KeyError):
        made.call({}, moment(1))
    assert request.foresight is not foresight
    for each in (request, request.of(1)):
        assert each.branches["cond"].course.history.chunk(0, 0).lost == "a call was broken off"


def test_calls_of_both_branches_go_to_the_pairing() -> None:
    asked = list[Any]()
    pairing = SimpleNamespace(call=lambda *given: (asked.append(given), ("made",))[1])
    made = runner(pairing=pairing)
    inputs, now = {"x": 1}, moment()
    assert made.call(inputs, now) == ("made",)
    assert asked == [(made._request(now).foresight, inputs, now)]
    made.made_before(inputs, now)
    assert made._request(now).foresight.last == {"cond": (inputs, now)}
    alone = runner()
    alone.made_before(inputs, now)
    assert alone._request(now).foresight.last == {}
    left = store(made)
    made.resume(now, {"uncond": left}, trusted=False)
    assert made.store_of(moment(branch="uncond")) is left
    assert made._request(now).foresight.trusted is False
    assert made.store_of(moment(branch="other")) is None


def test_a_call_begins_runs_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run", lambda steps: (f"{steps} ran", "masks"))
    made = runner()
    made.begin = lambda inputs, now: f"steps of {inputs} at {now.row}"
    made.finish = lambda steps, env, masks: (steps, env, masks)
    assert made.call("x", moment(2)) == ("steps of x at 2", "steps of x at 2 ran", "masks")


def test_masks_of_samples_that_ran_one_by_one_are_joined() -> None:
    made = runner()
    assert made.masks is None
    made.join_masks(2)
    made.masks = [np.full((1, 1), n) for n in range(3)]
    assert made.log.masks is made.masks
    made.join_masks(1)
    assert len(made.masks) == 3
    made.join_masks(2)
    assert [mask.tolist() for mask in made.masks] == [[[0]], [[1], [2]]]


def test_whether_a_step_is_under_way() -> None:
    made = runner()
    assert made.begun(moment()) is False
    made._request(moment()).branches = {"cond": store(made, row=1)}
    assert made.begun(moment(1)) is False
    assert made.begun(moment(1, "uncond")) is True
    assert made.begun(moment(2, "uncond")) is False


def test_events_of_a_call_that_the_model_itself_ran() -> None:
    made = runner(expert="transformer_2")
    chunks = ChunkTime(0, "finished", 3), ChunkTime(1, "active", 1)
    made.note_whole(moment(2, "uncond", chunks=chunks, first=1), "a reason")
    assert made.events == [
        Event("run", 2, "uncond", 0, 0, 4, "", "full", 1, 1, "a reason", expert="transformer_2"),
        Event("run", 2, "uncond", 0, 1, 2, "", "full", 1, 1, "a reason", expert="transformer_2"),
    ]
    made.log.events[:] = [event(tokens=6)]
    made.note_whole(moment(), "")
    assert (made.events[-1].tokens, made.events[-1].computed) == (6, 6)
    made.note_whole(moment(request="other"), "")
    assert made.events[-1].tokens == 1


def test_which_branch_a_decision_follows() -> None:
    made = runner("branches { share decision of cond }")
    assert made._leader(moment(branch="uncond")) is None
    leader = made._request(moment()).branches["cond"] = store(made, row=2)
    assert made._leader(moment(2, "uncond")) is leader
    assert made._leader(moment(3, "uncond")) is None
    assert made._leader(moment(2, "cond")) is None
    apart = runner()
    apart._request(moment()).branches["cond"] = store(apart, row=2)
    assert apart._leader(moment(2, "uncond")) is None


def test_the_store_and_the_plan_of_a_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is made once, and anew when the model is told other timesteps."""
    planned = list[Any]()

    def plans(lowered: object, bounds: Any, grid: Grid, inputs: object, fold: bool, told: object) -> dict[str, Any]:
        planned.append((grid, inputs, fold, told))
        return {"": SimpleNamespace(notes=(f"note {len(planned)}",))}

    monkeypatch.setattr(module, "make_plans", plans)
    made = runner(notes=())
    made._request(moment())
    made.notes = ()
    layout = Layout(2, 1, 1, 4)
    kept, found = made._store(moment(total=3), layout, {"x": 1})
    assert (kept.course.history.computed.shape, found[""].notes) == ((2, 3), ("note 1",))
    assert planned == [(GRID, {"x": 1}, True, None)]
    again, _ = made._store(moment(1, total=3), layout, {})
    assert again is kept
    assert len(planned) == 1
    told = Told((1.0,) * 4)
    made._store(moment(1, told=told), layout, {})
    assert (len(planned), planned[-1][3]) == (2, told)
    assert made.notes == ("note 1", "note 2")
    made._store(moment(1, told=told), layout, {})
    assert len(planned) == 2


def test_a_budget_admits_a_branch_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "make_plans", lambda *_: {})
    admitted = list[Any]()
    budget = SimpleNamespace(admit=lambda inputs, now, others: admitted.append((inputs, now.branch, others)))
    made = runner(budget=budget)
    request = made._request(moment())
    request.branches, request.of(1).branches = {"cond": store(made)}, {"uncond": store(made)}
    made._store(moment(branch="uncond", sample=1), Layout(1, 1, 1, 1), {"x": 1})
    assert admitted == [({"x": 1}, "uncond 1", ["cond 0", "uncond 1"])]


def test_branches_of_chunks_that_lie_behind_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "make_plans", lambda *_: {})
    made = runner()
    request = made._request(moment())
    ahead = ChunkTime(2, "active", 0), ChunkTime(3, "active", 0)

    def left(row: int, *chunks: int) -> BranchStore:
        found = store(made, row=row, chunks=4)
        found.window = Window(tuple((chunk, False) for chunk in chunks), 6, ())
        return found

    request.branches = {
        "behind": left(3, 0, 1), "late": left(4, 0, 1), "around": left(3, 1, 2), "cond": left(3, 1, 2),
        "new": store(made, row=0),
    }  # fmt: skip
    request.planned = {"behind": {}, "late": {}}
    made._store(moment(5, chunks=ahead), Layout(1, 2, 1, 1), {})
    assert set(request.branches) == {"late", "around", "cond", "new"}
    assert "behind" not in request.planned
    request.branches["behind"] = left(3, 0, 1)
    made._store(moment(5, chunks=ahead), Layout(1, 2, 1, 1), {})  # it has no plan to free
    assert "behind" not in request.branches
