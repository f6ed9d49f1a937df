"""What a generation came to: a policy that could not act says so, and what finished generations left can be freed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mccompile.ir import Phase, Rest, StepMask
from mccompile.language.load import load_policy
from mccompile.runtime import runner
from mccompile.runtime.summary import Ran, summarise
from tests.runtime.conftest import Tiny
from tests.runtime.test_laws import MOTION, compiled


def test_a_run_says_what_had_no_effect(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """Fewer steps than warm-up: nothing is reused, and the reason is told. More steps: the shares add up."""
    model = compiled(tiny, MOTION, warmup=5)
    tiny.run(num_inference_steps=4, num_frames=13)
    short = model.summary()
    assert short.inert.startswith("policy motion reused nothing in ")
    assert "phase coarse is never reached in 4 steps; phase fine is never reached in 4 steps" in short.inert
    assert str(short).endswith(short.inert)
    assert caplog.messages == [short.inert]
    model.set_parameters(warmup=2)
    tiny.run(num_inference_steps=8, num_frames=13)
    longer = model.summary()
    assert longer.inert == ""
    assert caplog.messages == [short.inert]
    assert set(longer.phases) == {"warmup", "coarse", "fine"}
    assert longer.phases["warmup"] == 1.0
    assert longer.computed < 1.0
    assert sum(longer.why.values()) == sum(e.request == model.events[-1].request for e in model.events)


def test_what_is_meant_to_compute_is_not_called_idle(tiny: Tiny) -> None:
    model = compiled(tiny, "exact")
    assert model.summary().inert == ""
    tiny.run(num_inference_steps=2, num_frames=13)
    assert model.summary().inert == ""


def test_a_mask_that_computes_every_step_is_not_called_idle(tiny: Tiny) -> None:
    """It measures a run, as the cost table of a search does. A mask with a reuse is told where it had none."""
    model = compiled(tiny, "exact")
    tiny.run(num_inference_steps=2, num_frames=13)
    for compute, inert in ((True,) * 9, False), ((True,) * 8 + (False,), True):
        masked = replace(load_policy("exact"), phases=(Phase("all", Rest(), StepMask(compute)),))
        ran = Ran("", masked, (), first=0, last=1)
        assert bool(summarise([ran], model.events).inert) is inert


def test_finished_generations_are_freed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are bounded by themselves; `clear` frees them, the stores and what was made of the inputs."""
    monkeypatch.setattr(runner, "EVENTS_KEPT", 10)
    model, counts = compiled(tiny, MOTION), []
    for _ in range(3):
        tiny.run(num_inference_steps=2, num_frames=13)
        counts.append(len(model.events))
    assert counts[2] == counts[1] == counts[0] + 10
    model.clear()
    assert (model.events, model.runner.requests) == ([], {})
    assert all(not group.results for group in model.runner.engine.values._groups)
