"""Arguments that change nothing for the model may be others than at the compile; those that do are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mccompile.capture.errors import CallError
from mccompile.runtime.idle import IdleArguments
from tests.pipelines.conftest import Wan, generate


@pytest.mark.parametrize("more", [{}, {"scale": 1.0}])
def test_arguments_that_the_graph_does_not_read_are_accepted(tiny_wan: Wan, more: dict[str, object]) -> None:
    pipe = tiny_wan.pipe()
    tiny_wan.compile(pipe, "compute")
    wanted = generate(pipe)
    assert torch.equal(generate(pipe, attention_kwargs=more), wanted)


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor, shift: int | None = None, note: str | None = None) -> torch.Tensor:
        return x + (shift or 0)


def test_arguments_that_change_the_result_are_not_idle(tiny_wan: Wan) -> None:
    found = IdleArguments(Shifted(), tiny_wan.captured.model)
    x = torch.zeros(2)
    assert found.without({"x": x, "note": "other"}) == {"x": x, "note": None}
    assert found.without({"x": x, "shift": 3}) is None
    assert found.without({"x": x}) is None


def test_another_argument_with_an_effect_is_refused(tiny_wan: Wan) -> None:
    pipe = tiny_wan.pipe()
    tiny_wan.compile(pipe, "compute")
    image = {"encoder_hidden_states_image": torch.zeros(1, 2, 16)}
    pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **image}), with_kwargs=True)
    with pytest.raises(CallError, match="encoder_hidden_states_image differ"):
        generate(pipe)
