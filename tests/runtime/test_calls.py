"""What a model's call may look like: how it wraps its result, and what it calls its timestep."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import BaseOutput
from torch import nn

from mccompile import CompiledModel, compile
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.new_sizes import NewSizes

DIM, STEPS = 8, 4
GRID = Grid(STEPS, (900.0, 600.0, 300.0, 100.0), (0.9, 0.6, 0.3, 0.1))
EVERY_SECOND = """policy second {
  phase rest { compute every 2 steps }
  layers blocks[*] { keep residual }
}
"""


@dataclass
class TwoOutputs(BaseOutput):
    sample: torch.Tensor
    sound: torch.Tensor


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x + time).chunk(3, dim=-1)
        return x + F.scaled_dot_product_attention(q, k, v)


class Wrapping(nn.Module):
    """Calls its timestep `t`, and returns two tensors in a tuple or in an output object, or one as it is.

    bare: it returns the tuple whatever it is asked for, as some models do.
    """

    def __init__(self, single: bool, bare: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.single, self.bare = single, bare

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, return_dict: bool = True) -> object:
        time = t[:, None, None] * 0.001 + text.mean(1, keepdim=True)
        for block in self.blocks:
            x = block(x, time)
        if self.single:
            return Transformer2DModelOutput(x) if return_dict else x
        result = x.sin(), x.cos()
        return TwoOutputs(*result) if return_dict and not self.bare else result


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return made(single=False)


def made(single: bool, bare: bool = False) -> CompiledModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Wrapping(single, bare).eval().requires_grad_(False)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("test.policy", EVERY_SECOND)
    return compile(model, policy, probe=call(6), second=call(10), clock=clock, backend="eager")  # type: ignore[arg-type]


def call(rows: int, step: int = 0) -> dict[str, torch.Tensor]:
    x = torch.randn(1, rows, DIM, generator=torch.Generator().manual_seed(step))
    return {"x": x, "t": torch.tensor([GRID.timesteps[step]]), "text": TEXT}


TEXT = torch.linspace(0, 1, 3 * DIM).view(1, 3, DIM)


def test_a_result_is_wrapped_as_the_call_asks(compiled: CompiledModel) -> None:
    """One model was captured, without `return_dict`; a call may leave it out, or say either."""
    assert isinstance(compiled.clock, Timeline)
    compiled.clock.row = 0
    given = call(8)
    own = compiled.model(**given)
    for found in (compiled(**given), compiled(**given, return_dict=True)):
        assert isinstance(found, TwoOutputs)
        assert torch.equal(found.sample, own.sample)
        assert torch.equal(found.sound, own.sound)
    bare = compiled(**given, return_dict=False)
    assert isinstance(bare, tuple)
    assert torch.equal(bare[1], own.sound)


def test_a_result_without_a_tuple_is_wrapped_too() -> None:
    compiled, given = made(single=True), call(8)
    own = compiled.model(**given)
    assert torch.equal(compiled(**given).sample, own.sample)
    assert torch.equal(compiled(**given, return_dict=False), own.sample)


def test_a_result_that_the_model_does_not_wrap_stays_as_it_is() -> None:
    compiled, given = made(single=False, bare=True), call(8)
    own = compiled.model(**given)
    for found in (compiled(**given), compiled(**given, return_dict=True)):
        assert type(found) is tuple
        assert all(map(torch.equal, found, own))


def test_the_model_is_asked_only_where_a_call_is_of_another_kind_than_the_captured_ones(
    compiled: CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size between the two that were captured is none; whole numbers in place of fractions are."""
    sizes = NewSizes(compiled.model, compiled.runner.lowered.captured)  # type: ignore[arg-type]
    asked: list[str] = []
    monkeypatch.setattr(sizes, "_compare", lambda call, inputs, why, shared: asked.append(why))
    for given in (call(7), {**call(7), "t": torch.tensor([900])}):
        assert not sizes.knows(given)
        sizes.check(given)
        assert sizes.knows(given)
    (why,) = asked
    assert why.endswith("not `t` of torch.float32")


def test_a_new_timestep_is_no_new_prompt_whatever_its_name(compiled: CompiledModel) -> None:
    assert isinstance(compiled.clock, Timeline)
    compiled.clear()
    for compiled.clock.row in range(STEPS):
        compiled(**call(8, compiled.clock.row))
    assert [event.action for event in compiled.events] == ["full", "reuse", "full", "reuse"]
