"""Both branches in one forward, by itself: when the second is foreseen, when its half is handed out or undone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile.policy.phases import Grid
from mccompile.runtime import pair as module
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.layout import Layout
from mccompile.runtime.pair import BothStep, Foreseen, Foresight, Pairing, Pending
from mccompile.runtime.step import Step
from tests.runtime.test_step import FULL, REUSE, SKIP, step

GRID = Grid(4, (900.0, 600.0, 300.0, 100.0), (0.9, 0.6, 0.3, 0.1))
X, TEXT = torch.ones(2), {"cond": torch.zeros(3), "uncond": torch.full((3,), 2.0)}


def moment(row: int, branch: str = "cond") -> Moment:
    return Moment("run", row, branch, GRID, (ChunkTime(0, "active", row),), 1)


def inputs(branch: str, x: torch.Tensor = X) -> dict[str, Any]:
    return {"x": x, "text": TEXT[branch], "steps": 3}


class Calls:
    """A runner whose calls note what is begun and finished."""

    engine: Any = None

    def __init__(self) -> None:
        self.done = list[Any]()
        self.store: Any = None

    def store_of(self, moment: Moment) -> Any:
        return self.store

    def begin(self, inputs: Any, moment: Moment) -> Any:
        self.done.append(("begin", moment.branch, moment.row))
        return {"": SimpleNamespace(group="", moment=moment)}

    def finish(self, steps: Any, env: Any, masks: Any) -> Any:
        self.done.append("finish")
        return ("results", env, masks)


@pytest.fixture
def pairing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One that notes where it runs both branches, and that runs them one by one all the same."""
    monkeypatch.setattr(module, "run", lambda steps: ("env", set(steps)))
    made: Any = Pairing(Calls(), "cond")
    made.both = list[Foreseen]()

    def both(known: Foresight, given: Any, now: Moment, foreseen: Foreseen) -> Any:
        made.both.append(foreseen)
        return made._alone(made._begin(given, now))

    made._both = both
    return made


def test_the_second_branch_is_foreseen_when_both_were_called_in_the_row_before(pairing: Any) -> None:
    known = Foresight()
    for branch in ("cond", "uncond"):
        assert pairing.call(known, inputs(branch), moment(0, branch)) == ("results", "env", {""})
    assert (pairing.both, known.expected) == ([], None)
    later = X + 1
    pairing.call(known, inputs("cond", later), moment(1))
    (foreseen,) = pairing.both
    assert foreseen.moment == moment(1, "uncond")
    assert (foreseen.inputs["x"] is later, foreseen.inputs["text"] is TEXT["uncond"]) == (True, True)
    assert known.last["cond"][1] == moment(1)
    pairing.call(known, inputs("cond"), moment(3))  # a row was left out
    assert len(pairing.both) == 1


def test_a_wrong_expectation_ends_trust_and_a_right_one_restores_it(pairing: Any) -> None:
    known = Foresight(trusted=False)
    for branch in ("cond", "uncond"):
        pairing.call(known, inputs(branch), moment(0, branch))
    odd = X + 5
    for row, x, trusted in ((1, odd, False), (2, odd, True)):
        pairing.call(known, inputs("cond"), moment(row))
        assert pairing.both == []
        assert known.expected.moment == moment(row, "uncond")
        pairing.call(known, inputs("uncond", x), moment(row, "uncond"))
        assert (known.expected, known.trusted) == (None, trusted)
    pairing.call(known, inputs("cond"), moment(3))
    assert len(pairing.both) == 1
    assert known.expected is None


class Taken:
    """Rows that a run of both has replaced."""

    def __init__(self) -> None:
        self.done = list[Any]()

    def back(self) -> None:
        self.done.append("back")

    def keep(self, store: Any) -> None:
        self.done.append(("keep", store))


@pytest.mark.parametrize("keep", ["residual", None])
def test_a_half_is_handed_out_at_its_own_call(pairing: Any, keep: str | None) -> None:
    expected = Foreseen.of(moment(1, "uncond"), inputs("uncond"))
    assert expected is not None
    decided, taken = list[Any](), Taken()
    regions = (SimpleNamespace(keep=None), SimpleNamespace(keep=keep))
    half: Any = SimpleNamespace(
        group="", store="store", decide=decided.append, engine=SimpleNamespace(lowered=SimpleNamespace(regions=regions))
    )
    known = Foresight(pending=Pending(expected, half, {"y": X}, np.ones(1, bool), taken))  # type: ignore[arg-type]
    found = pairing.call(known, inputs("uncond"), moment(1, "uncond"))
    assert found == ("results", {"y": X}, {"": np.ones(1, bool)})
    assert (taken.done, decided) == ([("keep", "store")], [{"y": X}] if keep else [])
    assert (known.pending, known.trusted, known.last["uncond"][1]) == (None, True, moment(1, "uncond"))
    assert pairing._calls.done == ["finish"]


def test_a_half_is_undone_before_any_other_call(pairing: Any) -> None:
    expected, taken = Foreseen.of(moment(1, "uncond"), inputs("uncond")), Taken()
    known = Foresight(pending=Pending(expected, None, {}, np.ones(1), taken))  # type: ignore[arg-type]
    pairing.call(known, inputs("uncond", X + 1), moment(1, "uncond"))
    assert (taken.done, known.pending, known.trusted) == (["back"], None, False)
    assert pairing._calls.done == [("begin", "uncond", 1), "finish"]


def test_a_call_is_the_expected_one_with_its_very_tensors_or_equal_ones() -> None:
    given = {"x": X.clone(), "text": TEXT["cond"], "steps": 3}
    foreseen = Foreseen.of(moment(1), given)
    assert foreseen is not None
    assert foreseen.is_it(given, moment(1))
    assert foreseen.is_it({**given, "x": X.clone()}, moment(1))
    for other in ({"x": X + 1}, {"x": torch.ones(3)}, {"steps": 4}, {"steps": torch.tensor(4)}):
        assert not foreseen.is_it({**given, **other}, moment(1))
    assert not foreseen.is_it(given, moment(2))
    given["x"].add_(1)
    assert not foreseen.is_it(given, moment(1))
    with torch.inference_mode():
        assert Foreseen.of(moment(1), {"x": torch.ones(1)}) is None


def followed(**more: Any) -> tuple[Pairing, Any, Any]:
    """A pairing, the leader's step, and the follower's as it will be begun."""
    first, second = step(FULL), step(FULL)
    second = replace(second, **more)
    pairing: Any = Pairing(Calls(), "cond")
    pairing._begin = lambda inputs, moment: second
    pairing._calls.store = second.store
    return pairing, first, second


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that all have the window 1."""
    monkeypatch.setattr(module, "window_of", lambda *_: 1)


@pytest.mark.usefixtures("window")
def test_the_follower_is_begun_where_it_runs_on_the_leaders_rows() -> None:
    foreseen: Any = SimpleNamespace(moment=None, inputs={})
    pairing, first, second = followed()
    second.store.window = 1
    found = pairing._follower(first, foreseen)
    assert found is not None
    assert (found.leader is first.course, found.store is second.store) == (True, True)
    second.store.window = 2
    assert pairing._follower(first, foreseen) is None
    second.store.window = 1
    second.course.history.copies.add((0, 0))
    assert pairing._follower(first, foreseen) is None
    pairing._calls.store = None
    assert pairing._follower(first, foreseen) is None
    for other in ({"layout": Layout(1, 1, 2, 1)}, {"actions": ((SKIP,),)}):
        pairing, first, second = followed(**other)
        second.store.window = 1
        assert pairing._follower(first, foreseen) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "agree"),
    [
        (FULL, FULL, True), (FULL, REUSE, True), (REUSE, FULL, False), (SKIP, SKIP, True), (SKIP, FULL, False),
        (FULL, SKIP, False), (REUSE, REUSE, True), (SKIP, REUSE, False),
    ],
)  # fmt: skip
def test_the_follower_computes_at_most_what_the_leader_does(ours: Action, theirs: Action, agree: bool) -> None:
    first, second = step(FULL, ours), step(FULL, theirs)
    assert module._agree(first, second) is agree


class Joint:
    """What joins the tensors of two branches, of which only halves are made here."""

    def __init__(self, batch: int) -> None:
        self.batch, self.memory, self.done = batch, "memory of both", list[Any]()
        self.joins = True

    def combine(self, first: Any, second: Any) -> Any:
        self.done.append("combine")
        return ({"shared": 1}, {"entry": 2}) if self.joins else None

    def halves(self, env: Any) -> Any:
        return {"half": "first"}, {"half": "second"}

    def publish(self, store: Any, place: int) -> None:
        self.done.append(("publish", store, place))

    def taken(self) -> str:
        return "taken"

    def save(self, captured: Any, number: int, region: Any, rows: Any) -> None:
        self.done.append(("save", captured, number, region, rows))


def test_a_run_of_both_finishes_the_leader_and_keeps_the_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[Any]()
    mask = np.array([[True], [True], [False], [False]])
    monkeypatch.setattr(module, "Joint", Joint)
    monkeypatch.setattr(module, "run", lambda steps: (ran.append(steps), ("env", dict.fromkeys(steps, mask)))[1])
    first, second = (replace(step(one), layout=Layout(2, 1, 1, 2)) for one in (FULL, REUSE))
    pairing: Any = Pairing(Calls(), "cond")
    pairing._begin, pairing._follower = (lambda *_: first), (lambda *_: second)
    known, foreseen = Foresight(), Foreseen.of(moment(1, "uncond"), inputs("uncond"))
    results = pairing._both(known, {"x": X}, first.moment, foreseen)
    both = ran[0][""]
    assert isinstance(both, BothStep)
    assert (both.layout.batch, both.actions, both.leader) == (4, ((FULL,), (REUSE,)), None)
    assert (both.first, both.second, both.inputs, both.shared, both.entry) == (
        first, second, {"x": X}, {"shared": 1}, {"entry": 2}
    )  # fmt: skip
    assert (both.store, both.plan, both.bound) == (first.store, first.plan, first.bound)
    assert results[:2] == ("results", {"half": "first"})
    assert results[2][""].tolist() == [[True], [True]]
    joint: Any = known.joint
    assert joint.done == ["combine", ("publish", first.store, 0)]
    assert known.pending is not None
    assert (known.pending.call, known.pending.step, known.pending.env) == (foreseen, second, {"half": "second"})
    assert (known.pending.mask.tolist(), known.pending.taken) == ([[False], [False]], "taken")
    pairing._both(known, {"x": X}, first.moment, foreseen)
    assert known.joint is joint
    joint.batch = 5  # other samples than before
    pairing._both(known, {"x": X}, first.moment, foreseen)
    assert known.joint is not joint


def test_the_leader_runs_alone_where_both_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[Any]()
    monkeypatch.setattr(module, "run", lambda steps: (ran.append(steps), ("env", {}))[1])
    first, second = step(FULL), step(FULL)
    pairing: Any = Pairing(Calls(), "cond")
    pairing._begin, pairing._follower = (lambda *_: first), (lambda *_: None)
    known: Any = Foresight()
    assert pairing._both(known, {}, first.moment, None) == ("results", "env", {})
    assert (known.joint, ran) == (None, [{"": first}])
    known.joint = Joint(1)
    known.joint.joins, pairing._follower = False, lambda *_: second
    assert pairing._both(known, {}, first.moment, None) == ("results", "env", {})
    assert (ran[1], known.pending, known.joint.done) == ({"": first}, None, ["combine"])


def test_a_step_of_both_has_the_leaders_decision_and_both_ones_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, joint = step(FULL, REUSE), step(FULL, REUSE), Joint(1)
    own = [getattr(first, name) for name in Step.__dataclass_fields__]
    both = BothStep(*own, first, second, joint)  # type: ignore[arg-type]
    mask = both.decide({"both": 1})  # type: ignore[dict-item]
    assert mask.tolist() == [[[[True, True]], [[False, False]]]] * 2
    assert both.memory == "memory of both"  # type: ignore[comparison-overlap]
    monkeypatch.setattr(Step, "compared", lambda self, source, env: torch.full((1,), 1.0 + (env["half"] == "second")))
    assert both.compared("latent", {}).tolist() == [1.0, 2.0]
    monkeypatch.setattr(Step, "decide", lambda self, env: np.array([env["half"] == "first"]))
    assert both.decide({}).tolist() == [True, True]
    merged = list[Any]()
    monkeypatch.setattr(Step, "merge", lambda *given: (merged.append(given[1:]), {"y": 1})[1])
    first.engine.lowered.captured = "captured"
    assert both.merge(3, "region", {}, ("a", "b"), None) == {"y": 1}  # type: ignore[arg-type, comparison-overlap]
    assert joint.done == [("save", "captured", 3, "region", "a"), ("save", "captured", 3, "region", "b")]
    assert merged == [(3, "region", {}, ("a", "b"), None)]
