"""Calls of several samples of a model that is captured for one: each sample is run alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile import CompiledModel, api
from mccompile.capture.errors import CallError
from mccompile.diagnostics.source import Source
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.model_table import GRID, STEPS, STEPWISE, TOKENS
from tests.runtime.test_sample_sizes import _Block, call


class Branching(nn.Module):
    """Reads the number of its samples in a branch, as FramePack does. shift: of calls of more than two samples."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv3d(4, 16, (1, 2, 2), (1, 2, 2)), nn.Linear(16, 16)
        self.time, self.shift = nn.Linear(1, 16), shift
        self.blocks = nn.ModuleList([_Block(), _Block()])

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        batch, _, frames, height, width = hidden_states.shape
        x = self.embed(hidden_states).flatten(2).transpose(1, 2)
        shift = self.time(timestep[:, None] / 1000)
        if batch == 1:
            text, mask = F.pad(text, (0, 0, 0, 1)), F.pad(mask, (0, 1), value=-float("inf"))
        elif batch > 2:
            shift = shift + self.shift
        for block in self.blocks:
            x = block(x, shift, text, mask)
        x = self.head(x).view(batch, frames, height // 2, width // 2, 4, 2, 2)
        return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(hidden_states.shape)


SIZE = (5, 8, 10)


@cache
def prepared(shift: float = 0.0) -> tuple[nn.Module, api.Prepared]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Branching(shift).eval().requires_grad_(False)
    return model, api.prepare(model, probe=call((4, 6, 14), 1, 1), second=call((6, 10, 22), 1, 1))


def run(policy: str, *samples: int) -> tuple[list[torch.Tensor], CompiledModel]:
    """The outputs of a run with those of three samples that are named."""
    model, captured = prepared()
    clock = Timeline("run", GRID, steps_in_order(GRID))
    text = Source("test.policy", policy) if "{" in policy else policy
    compiled = api.compile(model, text, captured=captured, clock=clock, backend="eager")  # type: ignore[arg-type]
    compiled.runner.masks = []
    made, prompt = [], call(SIZE, 3, 3)
    kept = {name: prompt[name][list(samples)] for name in ("text", "mask")}
    for clock.row in range(STEPS):
        step = call(SIZE, 3, 3, clock.row)
        made.append(compiled(**{**{k: v[list(samples)] for k, v in step.items()}, **kept}))
    return made, compiled


def test_it_is_captured_for_one_sample_and_says_so() -> None:
    captured = prepared()[1].model
    assert captured.each == ("hidden_states", "timestep", "text", "mask")
    assert captured.unbatched
    assert not captured.samples


@pytest.mark.parametrize("policy", ["compute", STEPWISE, TOKENS])
def test_several_samples_are_what_each_is_alone(policy: str) -> None:
    together, compiled = run(policy, 0, 2)
    for place, sample in enumerate((0, 2)):
        alone, single = run(policy, sample)
        assert all(torch.equal(a[place : place + 1], b) for a, b in zip(together, alone, strict=True))
        events = [e for e in compiled.events if e.sample == place]
        assert [(e.action, e.computed, e.why) for e in events] == [
            (e.action, e.computed, e.why) for e in single.events
        ]
        assert compiled.runner.masks is not None
        assert single.runner.masks is not None
        masks = zip(compiled.runner.masks, single.runner.masks, strict=True)
        assert all(np.array_equal(a[place], b[0]) for a, b in masks)
    assert compiled.summary().steps == STEPS


def test_what_the_model_computes_together_is_what_they_are_alone() -> None:
    model, _ = prepared()
    given = call(SIZE, 3, 3)
    torch.testing.assert_close(run("compute", 0, 1, 2)[0][0], model(**given))


def test_a_text_of_all_samples_is_given_to_each() -> None:
    model, captured = prepared()
    clock = Timeline("run", GRID, steps_in_order(GRID))
    compiled = api.compile(model, "compute", captured=captured, clock=clock, backend="eager")
    given = call(SIZE, 2, 1)
    given = {**given, "text": given["text"].expand(2, -1, -1), "mask": given["mask"]}
    torch.testing.assert_close(compiled(**given), model(**given))


def test_the_model_is_asked_for_each_number_of_samples() -> None:
    model, captured = prepared(shift=1.0)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    compiled = api.compile(model, "compute", captured=captured, clock=clock, backend="eager")
    compiled(**call(SIZE, 2, 2))
    with pytest.raises(CallError, match="something else for each sample alone"):
        compiled(**call(SIZE, 3, 3))


def test_samples_of_two_numbers_are_refused() -> None:
    model, captured = prepared()
    clock = Timeline("run", GRID, steps_in_order(GRID))
    compiled = api.compile(model, "compute", captured=captured, clock=clock, backend="eager")
    with pytest.raises(CallError, match=r"`text` has 2, .* samples"):
        compiled(**{**call(SIZE, 3, 3), "text": call(SIZE, 2, 2)["text"]})


def test_prompts_of_many_samples_stay_known() -> None:
    """What each sample is given is the same tensor in every step, or its prompt would count as another one."""
    model, captured = prepared()
    clock = Timeline("run", GRID, steps_in_order(GRID))
    compiled = api.compile(model, Source("test.policy", STEPWISE), captured=captured, clock=clock, backend="eager")
    prompt = call(SIZE, 40, 40)
    for clock.row in range(2):
        for branch in ("cond", "uncond"):
            with compiled.cache_context(branch):
                latents = call(SIZE, 40, 40, clock.row)["hidden_states"]
                compiled(**{**prompt, "hidden_states": latents})
    assert {event.action for event in compiled.events if event.row == 1} == {"reuse"}


def test_other_weights_reach_every_sample() -> None:
    model, captured = prepared()
    clock = Timeline("run", GRID, steps_in_order(GRID))
    compiled = api.compile(model, Source("test.policy", STEPWISE), captured=captured, clock=clock)
    before = model.head.bias.clone()  # type: ignore[union-attr]
    try:
        for clock.row in range(2):
            if clock.row:
                compiled.runner.weights_changed()
            compiled(**call(SIZE, 2, 2, clock.row))
    finally:
        model.head.bias.copy_(before)  # type: ignore[union-attr, operator]
    assert [(e.sample, e.action, e.why) for e in compiled.events if e.row == 1] == [
        (0, "full", "other weights"), (1, "full", "other weights"),
    ]  # fmt: skip
