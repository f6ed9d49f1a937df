"""A capture of any number of samples: each is what it is alone, and what cannot be so is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mccompile.capture import CallError, capture_batched, flat_inputs, run_full
from tests.zoo import zoo


@pytest.mark.parametrize("name", ["skyreels", "hunyuan", "flux"])
def test_three_samples_are_what_each_is_alone(name: str) -> None:
    family = zoo(name)
    model = family.model()
    captured, _ = capture_batched(model, *(family.call(s) for s in family.sizes[:2]))
    assert "hidden_states" in captured.samples
    assert "timestep" in captured.samples
    call = family.call(family.sizes[2], batch=3)
    with torch.no_grad():
        (together,) = run_full(captured, flat_inputs(captured, call)).outputs
        (wanted,) = model(**call | ({"fps": [0]} if "fps" in call else {}))  # diffusers takes no longer list here
    torch.testing.assert_close(together, wanted, rtol=1e-10, atol=1e-10)


class _Mixing(nn.Module):
    """Its blocks subtract the mean over samples: no sample is by itself."""

    def __init__(self, model: nn.Module, mixes: bool) -> None:
        super().__init__()
        self.model, self.mixes = model, mixes

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor,
        return_dict: bool = False,
    ) -> object:  # fmt: skip
        if self.mixes:
            hidden_states = hidden_states - hidden_states.mean(0, keepdim=True) / 2
        elif hidden_states.size(0) != 1:
            raise ValueError("one sample at a time")
        return self.model(hidden_states, timestep, encoder_hidden_states, return_dict=return_dict)


@pytest.mark.parametrize(("mixes", "why"), [(True, "not what it gives on each alone"), (False, "one sample at a time")])
def test_a_model_of_one_number_of_samples_refuses_another(mixes: bool, why: str) -> None:
    family = zoo("wan")
    model = _Mixing(family.model(), mixes).eval()
    captured, _ = capture_batched(model, *(dict(family.call(s)) for s in family.sizes[:2]))
    assert not captured.samples
    assert why in captured.unbatched
    flat_inputs(captured, family.call(family.sizes[2]))
    with pytest.raises(CallError, match="has 2 samples, but the model was captured for 1"):
        flat_inputs(captured, family.call(family.sizes[2], batch=2))


def test_a_list_of_equal_numbers_may_be_as_long_as_there_are_samples() -> None:
    """diffusers hands SkyReels-V2 `fps` as a list, one a sample."""
    family = zoo("skyreels")
    captured, _ = capture_batched(family.model(), *(family.call(s) for s in family.sizes[:2]))
    flat_inputs(captured, family.call(family.sizes[2], batch=2) | {"fps": [0, 0]})
    with pytest.raises(CallError):
        flat_inputs(captured, family.call(family.sizes[2], batch=2) | {"fps": [0, 1]})
