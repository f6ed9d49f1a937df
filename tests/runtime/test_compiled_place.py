"""A compiled model in the place of the pipeline's: installed, undone, with others, and summed up with them."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.runtime import compiled as module
from mccompile.runtime.clock import Moment
from mccompile.runtime.errors import NoIncrement
from mccompile.runtime.trace import Event
from tests.runtime.test_compiled_model import Clock, Model, X, compiled, moment


class Attachable(Clock):
    """A clock that hangs on its pipeline."""

    def __init__(self, now: Moment) -> None:
        super().__init__(now)
        self.attached: Any = None

    def attach(self, ended: Any) -> None:
        self.attached = ended

    def detach(self) -> None:
        self.attached = None


def test_a_compiled_model_takes_the_place_of_the_pipelines_and_gives_it_back() -> None:
    made, pipe = compiled(), SimpleNamespace(transformer=None)
    own = made.model
    pipe.transformer = own.train()
    clock = Attachable(moment())
    made.install(pipe, clock)
    assert (pipe.transformer is made, made.clock is clock, own.training) == (True, True, False)
    assert (made._latest.told, clock.attached == made._ended) == (True, True)
    assert made.undo() is own
    assert (pipe.transformer is own, own.training, clock.attached) == (True, True, None)
    own.eval()
    assert made.undo() is own  # once more does nothing
    assert own.training is False
    plain = Clock(moment())
    made.install(pipe, plain)
    assert made._latest.told is False
    made.install(pipe, plain)
    assert (pipe.transformer is made, made._given is own) == (True, True)
    elsewhere = SimpleNamespace(transformer=own)
    made.install(elsewhere, plain)
    assert (pipe.transformer is own, elsewhere.transformer is made) == (True, True)
    other = Model()
    elsewhere.transformer = other
    assert made.undo() is own
    assert elsewhere.transformer is other
    around = nn.Sequential(own)
    pipe.transformer = around
    made.install(pipe, plain)
    assert (made.undo() is around, pipe.transformer is around) == (True, True)


def test_what_was_compiled_into_the_pipeline_before_is_undone_first() -> None:
    first, second, pipe = compiled(), compiled(), SimpleNamespace(transformer=None)
    pipe.transformer = first.model
    first.install(pipe, Attachable(moment()))
    second.install(pipe, Clock(moment()))
    assert (pipe.transformer is second, first._pipe, first._undo) == (True, None, [])
    assert second.undo() is second.model
    elsewhere = SimpleNamespace(transformer=first)
    first._pipe = pipe
    second.install(elsewhere, Clock(moment()))  # it stands in for the model of another pipeline too, and stays there
    assert (first._pipe, second._given is second.model) == (pipe, True)


def test_an_integration_step_that_cannot_be_taken_over_leaves_the_pipeline_as_it_was(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    made, pipe = compiled(), SimpleNamespace(transformer=None)
    pipe.transformer = made.model
    monkeypatch.setattr(module, "keeps_increment", lambda policy: True)
    clock, detached = Attachable(moment()), list[bool]()

    def attach(pipe: object, runner: object, clock: object) -> Any:
        assert runner is made.runner
        return SimpleNamespace(detach=lambda: detached.append(True))

    monkeypatch.setattr(module.Increments, "attach", attach)
    made.install(pipe, clock)
    made.undo()
    assert detached == [True]

    def fails(*_: object) -> Any:
        raise NoIncrement(made.runner.bound.ir, "Model", "no such step")

    monkeypatch.setattr(module.Increments, "attach", fails)
    with pytest.raises(NoIncrement):
        made.install(pipe, clock)
    assert (pipe.transformer is made.model, clock.attached) == (True, None)


class Sharing(Clock):
    """A clock for each of two transformers."""

    def share(self, slots: Any) -> Any:
        self.asked.append(slots)
        return tuple(Clock(moment(row)) for row in range(len(slots)))


def experts() -> tuple[Any, Any]:
    first, second = compiled(slot="transformer"), compiled(slot="transformer_2")
    first.join(second)
    return first, second


def test_experts_are_installed_and_undone_together() -> None:
    first, second = experts()
    assert (first.experts, second.experts) == ((first, second), (first, second))
    assert second.runner.log is first.runner.log
    assert (first.runner.expert, second.runner.expert) == ("transformer", "transformer_2")
    assert second._latest is first._latest
    pipe = SimpleNamespace(transformer=first.model, transformer_2=second.model)
    clock = Sharing(moment())
    first.install(pipe, clock)
    assert (pipe.transformer is first, pipe.transformer_2 is second) == (True, True)
    assert clock.asked == [("transformer", "transformer_2")]
    assert (first.clock.now.row, second.clock.now.row) == (0, 1)
    second.undo()
    assert (pipe.transformer is first.model, pipe.transformer_2 is second.model) == (True, True)
    first.clear()
    for each in (first, second):
        assert each.parts.done == ["clear", "sizes", "one by one"]


def test_what_of_the_policies_was_refused_is_told_once() -> None:
    first, second = experts()
    first.runner.lowered.refusals, second.runner.lowered.refusals = ("a", "b"), ("b", "c")
    assert first.refusals == ("a", "b", "c")
    assert first.captured == "whole"
    assert first.events is first.runner.events


def test_parameters_go_to_the_experts_that_have_them() -> None:
    first, second = experts()
    exact = load_policy("exact")
    second.runner.bound = bind(exact, {})
    first.set_parameters(threshold=0.25)
    assert first.parts.done[-1][1]["threshold"] == 0.25
    assert second.parts.done == [("rebind", {})]


def event(request: str, **more: Any) -> Event:
    values = {"row": 0, "branch": "cond", "sample": 0, "chunk": 0, "step": 0, "phase": "", "action": "full"}
    return Event(request, **{**values, "computed": 1, "tokens": 1, "why": "", **more})


def test_a_summary_is_of_the_experts_that_took_part() -> None:
    first, second = experts()
    second.runner.latest, second.runner.first_step, second.runner.notes = "before", 2, ("odd",)
    first.runner.events = [event("before"), event("run", step=3)]
    first._latest.requests = {"run"}
    found = first.summary()
    assert (list(found.experts), found.steps, found.complete, found.notes) == (["transformer"], 1, True, ())
    second.runner.latest = "run"
    assert list(first.summary().experts) == ["transformer", "transformer_2"]
    assert first.summary().notes == ("transformer_2: odd",)
    alone = compiled(slot="transformer")
    alone.runner.events, alone._latest.requests = [event("run", step=1)], {"run"}
    alone.runner.not_finite = lambda: 2
    told = alone.summary()
    assert (told.experts, told.odd, told.complete) == ({}, 2, False)


def test_the_end_of_a_generation_warns_of_what_a_user_must_know(caplog: pytest.LogCaptureFixture) -> None:
    first, second = experts()
    first.runner.events = [event("run", step=3)]
    first._latest.requests = {"run"}
    second._branch, second._place = "uncond", 3
    with caplog.at_level(logging.WARNING, "mccompile"):
        first._ended()
    assert (second._branch, second._place, first._latest.over) == ("cond", None, True)
    assert [m.startswith("policy teacache reused nothing in 1 steps") for m in caplog.messages] == [True]
    caplog.clear()
    first.runner.events = [event("run", step=1)]  # it was broken off
    first._ended()
    assert caplog.messages == []


def test_a_request_follows_another_one_of_its_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch, clock=Clock(moment()))
    made._latest.told = True
    made(X, return_dict=False)
    assert made.runner.goes_on is False
    made.clock = Clock(moment(request="next"))
    made(X, return_dict=False)
    assert made.runner.goes_on is True


def test_the_configuration_of_a_model_without_one_is_empty() -> None:
    assert module._configured(nn.Linear(1, 1)) == {}
    assert module._configured(Model()) == {"layers": 1}
