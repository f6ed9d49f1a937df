"""Further guidance passes of a step in a form that was not captured: the model itself runs them (skipped layers)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mccompile import CompiledModel, compile
from mccompile.capture.errors import CallError
from mccompile.diagnostics.source import Source
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import OTHER_FORM
from tests.runtime.test_calls import EVERY_SECOND, GRID, STEPS, Block, call


class Skipping(nn.Module):
    """Leaves out the blocks that a call names, as SD3 does for skip-layer guidance; counts its own runs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, skip: list[int] | None = None
    ) -> torch.Tensor:
        time = t[:, None, None] * 0.001 + text.mean(1, keepdim=True)
        for i, block in enumerate(self.blocks):
            if skip is None or i not in skip:
                x = block(x, time)
        return x.sin()


@pytest.fixture
def compiled() -> CompiledModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Skipping().eval().requires_grad_(False)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("test.policy", EVERY_SECOND)
    return compile(model, policy, probe=call(6), second=call(10), clock=clock, backend="eager")  # type: ignore[arg-type]


def test_a_pass_that_skips_layers_is_the_models_own(compiled: CompiledModel) -> None:
    """It is computed in every step, beside the captured pass, which reuses every second one."""
    assert isinstance(compiled.clock, Timeline)
    for compiled.clock.row in range(STEPS):
        given = call(8, compiled.clock.row)
        compiled(**given)
        with compiled.cache_context("skipping"):
            found = compiled(**given, skip=[1])
        assert torch.equal(found, compiled.model(**given, skip=[1]))
    told = {branch: [e for e in compiled.events if e.branch == branch] for branch in ("cond", "skipping")}
    assert [e.action for e in told["cond"]] == ["full", "reuse", "full", "reuse"]
    assert [(e.action, e.why, e.computed, e.tokens) for e in told["skipping"]] == [("full", OTHER_FORM, 8, 8)] * STEPS
    assert compiled.summary().why[OTHER_FORM] == STEPS
    assert compiled.summary().computed == 0.75


def test_the_first_call_of_a_step_in_another_form_is_refused(compiled: CompiledModel) -> None:
    """It is no further pass: what was captured is not what is run."""
    with pytest.raises(CallError, match="skip"):
        compiled(**call(8), skip=[1])


def test_the_model_is_asked_once_whether_an_argument_matters(compiled: CompiledModel) -> None:
    runs: list[object] = []
    assert isinstance(compiled.clock, Timeline)
    for compiled.clock.row in range(2):
        compiled(**call(8, compiled.clock.row))
        with compiled.cache_context("skipping"):
            hook = compiled.model.register_forward_hook(lambda *_: runs.append(1))
            compiled(**call(8, compiled.clock.row), skip=[1])
            hook.remove()
    assert len(runs) == 3 + 1  # with the argument, without it, and the call itself; then the call itself
