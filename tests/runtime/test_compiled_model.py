"""The compiled model by itself: what it looks at before a call, what it gives back, how it takes a place."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mccompile.capture.errors import CallError
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.phases import Grid
from mccompile.runtime import compiled as module
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.compiled import CLEAN_PASS, OTHER_FORM, CompiledModel, of_other_form
from mccompile.runtime.errors import ConfigChanged, NoClock, UnderAutocast
from mccompile.runtime.stand_in import StandIn
from mccompile.runtime.summary import LatestRun
from mccompile.runtime.trace import Event

GRID = Grid(4, (900.0, 600.0, 300.0, 100.0), (0.9, 0.6, 0.3, 0.1))
X = torch.arange(4.0).view(1, 4)


class Output(tuple[Any, ...]):
    """What the model gives in place of a tuple."""

    __slots__ = ()

    def __new__(cls, *values: Any) -> Output:
        return super().__new__(cls, values)


class Model(nn.Module):
    """It notes its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.config = {"layers": 1, "_name_or_path": "somewhere"}
        self.calls = list[dict[str, Any]]()

    def forward(self, x: torch.Tensor, scale: float = 1.0, return_dict: bool = True) -> Any:
        self.calls.append({"x": x, "scale": scale, "return_dict": return_dict})
        return Output(x * 7)


class Parts:
    """What the compiled model asks of its parts, in order."""

    def __init__(self) -> None:
        self.done = list[Any]()
        self.state = self.scaled = False
        self.known = True
        self.samples = 1

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.done.append((name, *given))


def moment(row: int = 0, **more: Any) -> Moment:
    chunks = more.pop("chunks", (ChunkTime(0, "active", row),))
    return Moment(more.pop("request", "run"), row, more.pop("branch", "cond"), GRID, chunks, 1, **more)


def compiled(monkeypatch: pytest.MonkeyPatch | None = None, slot: Any = None, **more: Any) -> Any:
    """One whose graph gives its input twice over, and whose parts note what they are asked."""
    model, parts = Model(), Parts()
    made: Any = object.__new__(CompiledModel)
    StandIn.__init__(made, model)
    policy = load_policy("teacache")

    def call(inputs: Any, now: Moment) -> Any:
        parts.done.append(("call", dict(inputs), now))
        return (inputs["x"] * 2,)

    captured = SimpleNamespace(
        inputs=("x",), written=(), out_spec=torch.utils._pytree.tree_structure((0,)), module=None
    )
    runner = SimpleNamespace(
        lowered=SimpleNamespace(captured=captured, whole="whole", policy=policy, refusals=()), bound=bind(policy, {}),
        log=object(), expert="", events=[], goes_on=False, latest="run", first_step=0, last_step=3, notes=(),
        decided=[], call=call, join_masks=lambda n: parts.done.append(("join", n)), begun=lambda now: False,
        note_whole=lambda now, why: parts.done.append(("whole", why)), not_finite=lambda: 0,
        weights_changed=lambda: parts.done.append("weights"), clear=lambda: parts.done.append("clear"),
        leave=lambda request: parts.done.append(("leave", request)), engine=SimpleNamespace(uses_rows=True),
        leading_key_values=lambda now, chunks: ("keys", chunks),
        rebind=lambda bound: parts.done.append(("rebind", dict(bound.values))),
    )  # fmt: skip
    vars(made).update(
        slot=slot, _experts=[made], _latest=LatestRun(), clock=None, journal=None, keeping=None, runner=runner,
        _branch="cond", _place=None, _return_dict=True, _output=None, _config={"layers": 1}, _undo=[], _pipe=None,
        _trained=(), _given=model, _factor=1.0, _checked=(None, -1), parts=parts,
        _state=SimpleNamespace(changed=lambda: (parts.done.append("state"), parts.state)[1]),
        _scales=SimpleNamespace(
            split=lambda call: ({n: v for n, v in call.items() if n != "scale"}, call.get("scale", 1.0)),
            follow=lambda factor: (parts.done.append(("follow", factor)), parts.scaled)[1], layers=frozenset(),
        ),
        _idle=SimpleNamespace(forget=lambda: parts.done.append("idle"), without=lambda asked: None),
        _sizes=SimpleNamespace(
            knows=lambda inputs: parts.known, check=lambda inputs, each: parts.done.append(("check", len(each))),
            taken=dict, forget=lambda: parts.done.append("sizes"),
        ),
        _one_by_one=SimpleNamespace(
            parts=lambda inputs: [{"x": inputs["x"] + i} for i in range(parts.samples)],
            forget=lambda: parts.done.append("one by one"),
        ),
    )  # fmt: skip
    vars(made).update(more)
    if monkeypatch is not None:
        monkeypatch.setattr(module, "flat_inputs", lambda captured, call, one_by_one: (call["x"],))
    made.set_up()
    return made


class Clock:
    """It says always the same, and notes what it was asked."""

    def __init__(self, now: Moment) -> None:
        self.now, self.asked = now, list[Any]()

    def moment(self, branch: str, inputs: Any, place: int | None = None) -> Moment:
        self.asked.append((branch, place))
        return self.now


def test_a_call_goes_to_the_graph_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch)
    with pytest.raises(NoClock):
        made(X)
    made.clock = Clock(moment())
    found = made(X, return_dict=False)
    assert (type(found), found[0].tolist()) == (tuple, (X * 2).tolist())
    (call,) = [one for one in made.parts.done if one[0] == "call"]
    assert (call[1]["x"].tolist(), call[2]) == (X.tolist(), moment())
    assert ("join", 1) in made.parts.done
    assert made.model.calls == []
    with made.cache_context("uncond", step_index=3):
        made(X, return_dict=False)
        with made.cache_context("other"):
            made(X, return_dict=False)
    assert made.clock.asked == [("cond", None), ("uncond", 3), ("other", None)]
    assert (made._branch, made._place) == ("cond", None)


def test_an_output_object_is_of_the_models_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch, clock=Clock(moment()))
    found = made(X)
    assert isinstance(found, Output)
    assert found[0].tolist() == (X * 2).tolist()
    assert len(made.model.calls) == 1  # asked once in which class it gives its output
    assert isinstance(made(X), Output)
    assert len(made.model.calls) == 1
    assert made._wrapped({}, found) is found
    assert made._wrapped({}, X)[0] is X
    made._return_dict = False
    assert type(made(X)) is tuple


def test_a_model_without_output_objects_is_not_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()
    made = compiled(monkeypatch, clock=Clock(moment()), _return_dict=module._ABSENT)
    monkeypatch.setattr(module, "flat_inputs", lambda captured, call, one_by_one: (asked.append(call), (call["x"],))[1])
    assert type(made(X)) is tuple
    assert asked == [{"x": X}]
    made._return_dict = True
    made(X)
    assert asked[1] == {"x": X, "return_dict": False}


def test_samples_that_are_run_one_by_one_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch, clock=Clock(moment()))
    made.parts.samples = 3
    found = made(X, return_dict=False)
    assert found[0].tolist() == torch.cat([X * 2, (X + 1) * 2, (X + 2) * 2]).tolist()
    assert [one[2].sample for one in made.parts.done if one[0] == "call"] == [0, 1, 2]
    assert ("join", 3) in made.parts.done


def test_what_the_model_writes_into_its_arguments_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[Any]()
    made = compiled(monkeypatch, clock=Clock(moment()))
    captured = made.runner.lowered.captured
    captured.written, captured.out_spec = ("place",), torch.utils._pytree.tree_structure(((0,), 0))
    made.runner.call = lambda inputs, now: (X, 5)
    monkeypatch.setattr(module, "give_back", lambda *told: given.append(told))
    assert made(X, return_dict=False) == (X,)
    assert given == [({"x": X, "return_dict": False}, ("place",), 5)]


def test_a_journal_keeps_the_calls_of_all_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch, clock=Clock(moment()))
    made.journal = SimpleNamespace(call=lambda runner, inputs, now: (runner is made.runner, inputs["x"], now))
    captured = made.runner.lowered.captured
    captured.out_spec = torch.utils._pytree.tree_structure((0, 0, 0))
    assert made(X, return_dict=False) == (True, X, moment())


def test_autocast_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch, clock=Clock(moment()))
    with torch.autocast("cpu"), pytest.raises(UnderAutocast):
        made(X)


def test_another_configuration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What diffusers notes of where a model was saved is none of it."""
    made = compiled(monkeypatch, clock=Clock(moment()))
    made.model.config["_name_or_path"] = "elsewhere"
    made(X, return_dict=False)
    made.model.config["layers"] = 2
    with pytest.raises(ConfigChanged, match=r"layers: 1 -> 2"):
        made(X)


def test_new_sizes_are_checked_without_the_scale_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch, clock=Clock(moment()))
    made(X, return_dict=False)
    assert not [one for one in made.parts.done if one[0] == "check"]
    made.parts.known, made.parts.samples = False, 2
    made.parts.done.clear()
    made(X, scale=0.5, return_dict=False)
    assert made.parts.done[:3] == [("follow", 1.0), ("check", 2), ("follow", 0.5)]


def test_the_model_is_looked_at_when_a_request_begins() -> None:
    made, other = compiled(), SimpleNamespace()
    other.runner = SimpleNamespace(leave=lambda request: made.parts.done.append(("other leaves", request)))
    made._experts.append(other)
    begins = ["state", ("follow", 1.0), "sizes", "one by one", ("other leaves", "run")]
    made._check_model(moment(), 1.0)
    assert made.parts.done == begins
    made.parts.done.clear()
    made._check_model(moment(1), 1.0)
    assert made.parts.done == []
    made._check_model(moment(1, visited=True), 1.0)
    assert made.parts.done == ["state", ("follow", 1.0)]
    made.parts.done.clear()
    made._check_model(moment(), 1.0)  # a row before: it begins anew
    assert made.parts.done == begins
    made.parts.done.clear()
    made._check_model(moment(1, request="next"), 1.0)
    assert made.parts.done[:2] == ["state", ("follow", 1.0)]
    made.parts.done.clear()
    made._check_model(moment(2, request="next"), 0.5)
    assert (made.parts.done, made._factor) == ([("follow", 0.5)], 0.5)


@pytest.mark.parametrize(("state", "scaled"), [(True, False), (False, True), (False, False)])
def test_other_weights_or_scales_are_followed(state: bool, scaled: bool) -> None:
    made = compiled()
    made.parts.state, made.parts.scaled = state, scaled
    made._check_model(moment(), 1.0)
    derived = ["weights", "idle"] if state or scaled else []
    assert [one for one in made.parts.done if one in ("weights", "idle")] == derived


def refused(monkeypatch: pytest.MonkeyPatch, made: Any, odd: str = "odd") -> None:
    """Calls with that argument are of another form than the captured one."""

    def flat(captured: object, call: Any, one_by_one: bool) -> Any:
        if odd in call:
            raise CallError("place", "cause", "remedy")
        return (call["x"],)

    monkeypatch.setattr(module, "flat_inputs", flat)
    made.signature = inspect.signature(lambda x, odd=None, return_dict=True: None)
    made.model.forward = lambda **given: ("itself", given)


def test_a_call_of_another_form_runs_the_model_itself_where_the_step_is_under_way(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compiled(monkeypatch, clock=Clock(moment()))
    refused(monkeypatch, made)
    with pytest.raises(CallError):
        made(X, odd=1)
    made.runner.begun = lambda now: True
    assert made(X, odd=1) == ("itself", {"x": X, "odd": 1})
    assert made.parts.done[-1] == ("whole", OTHER_FORM)
    clean = moment(chunks=(ChunkTime(0, "finished", 4), ChunkTime(1, "finished", 4)))
    made.clock, made.runner.begun = Clock(clean), lambda now: False
    assert made(X, odd=1)[0] == "itself"
    assert made.parts.done[-1] == ("whole", CLEAN_PASS)
    made.clock = Clock(moment(chunks=(ChunkTime(0, "finished", 4), ChunkTime(1, "active", 0))))
    with pytest.raises(CallError):
        made(X, odd=1)


def test_arguments_that_change_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch, clock=Clock(moment()))
    refused(monkeypatch, made)
    asked = list[Any]()
    made._idle.without = lambda call: (asked.append(call), {"x": call["x"] + 1})[1]
    assert made(X, odd=1, return_dict=False)[0].tolist() == ((X + 1) * 2).tolist()
    assert asked == [{"x": X, "odd": 1, "return_dict": False}]
    made.clock = Clock(moment(chunks=(ChunkTime(0, "finished", 4),)))
    assert made(X, odd=1)[0] == "itself"  # a clean pass is never asked about
    assert len(asked) == 1


def test_which_events_are_of_calls_that_the_model_itself_ran() -> None:
    event = Event("run", 0, "cond", 0, 0, 0, "", "full", 1, 1, OTHER_FORM)
    assert of_other_form(event)
    assert of_other_form(replace(event, why=CLEAN_PASS))
    assert not of_other_form(replace(event, why="warmup"))


def test_keys_that_a_call_asks_for_are_read_from_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch, clock=Clock(moment()))
    made.model.key_values_argument = "scale"
    made._scales.split = lambda call: (call, 1.0)
    asked = list[Any]()
    monkeypatch.setattr(module, "flat_inputs", lambda captured, call, one_by_one: (asked.append(call), (call["x"],))[1])
    made.runner.call = lambda inputs, now: (X, "none")
    made.runner.lowered.captured.out_spec = torch.utils._pytree.tree_structure((0, 0))
    assert made(X, scale=2, return_dict=False) == (X, ("keys", 2))
    assert asked == [{"x": X, "scale": 0, "return_dict": False}]
    assert made(X, scale=0, return_dict=False) == (X, "none")
    with pytest.raises(CallError, match="return_dict=False"):
        made(X, scale=2)
    made.runner.engine.uses_rows = False
    assert isinstance(made(X, scale=2, return_dict=False), Output)
    assert made.parts.done[-1] == ("whole", "structure not captured")
    assert made.model.calls[-1]["scale"] == 2
