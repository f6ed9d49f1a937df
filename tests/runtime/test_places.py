"""A module in a model's place, and the places that a pipeline has: what is looked up, put there, and left alone."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mccompile.runtime.stand_in import (
    SLOTS,
    StandIn,
    put_transformer,
    slots_of,
    stand_in_of,
    transformer_of,
    unwrapped,
)


class Model(nn.Module):
    """It has a part, a buffer, a setting, and arguments of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.factor = nn.Linear(2, 2), 1.0
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: torch.Tensor, time: float = 0.5, *, text: object = None, **more: object) -> torch.Tensor:
        return self.part(x)


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def standing(model: nn.Module) -> StandIn:
    found = StandIn(model)
    found.set_up()
    return found


def test_arguments_have_the_names_of_the_model() -> None:
    found, one = standing(Model()), torch.ones(1)
    assert found.arguments_of(one, 0.1, text=3) == {"x": one, "time": 0.1, "text": 3}
    assert found.arguments_of(x=one, scale=2, more=5) == {"x": one, "scale": 2, "more": 5}
    assert standing(Plain()).arguments_of(one) == {"x": one}
    with pytest.raises(TypeError):
        found.arguments_of(time=1.0)


def test_what_is_assigned_or_deleted_is_the_models_where_the_model_has_it() -> None:
    model = Model()
    found = standing(model)
    found.factor, found.mean, found.note = 2.0, torch.ones(2), 3
    assert (model.factor, float(model.mean.sum()), "note" in vars(model)) == (2.0, 2.0, False)
    found.extra, found.weight = nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    assert {"extra"} < set(dict(model.named_children()))
    assert "weight" in dict(model.named_parameters())
    del found.extra, found.note, found.mean
    assert "extra" not in dict(model.named_children())
    assert not {"note"} & vars(found).keys()
    assert "mean" not in dict(model.named_buffers())
    with pytest.raises(AttributeError, match="note"):
        found.note  # noqa: B018


def test_a_forward_is_its_own_whoever_puts_it_there() -> None:
    model = Model()
    model.__dict__["forward"] = model.forward
    found = standing(model)
    found.forward = print
    assert vars(found)["forward"] is print
    del found.forward
    assert "forward" not in vars(found)
    assert "forward" in vars(model)


def test_mode_dtype_and_weights_are_the_models() -> None:
    model = Model()
    found = standing(model)
    assert isinstance(found, Model)
    for mode in (False, True):
        assert found.train(mode) is found
        assert (found.training, model.training, model.part.training) == (mode, mode, mode)
    found.train(False)
    found.train()
    assert model.training
    assert found.to(torch.float64) is found
    assert model.part.weight.dtype == torch.float64
    state: Any = found.state_dict()
    assert state.keys() == model.state_dict().keys()
    found.load_state_dict({name: torch.ones_like(value) for name, value in state.items()})
    assert float(model.part.weight.detach().sum()) == 4.0
    assert type(copy.deepcopy(found)) is Model


def test_before_it_is_set_up_it_has_no_model_to_ask() -> None:
    found = StandIn.__new__(StandIn)
    with pytest.raises(AttributeError, match=r"^anything$"):
        found.anything  # noqa: B018


def test_what_is_put_around_a_model_is_taken_off() -> None:
    model = Model()
    found = standing(model)
    compiled: Any = torch.compile(found, backend="eager")
    assert [unwrapped(one) for one in (model, found, compiled)] == [model] * 3
    assert [stand_in_of(one) for one in (model, None, found, compiled)] == [None, None, found, found]
    assert stand_in_of(torch.compile(model, backend="eager")) is None


def test_the_places_of_a_pipeline() -> None:
    first, second, other = Plain(), Plain(), Plain()
    both, one = SimpleNamespace(transformer=first, transformer_2=second), SimpleNamespace(transformer=first)
    last, none = SimpleNamespace(transformer=None, transformer_2=second), SimpleNamespace(transformer=3)
    assert [slots_of(pipe) for pipe in (both, one, last, none)] == [SLOTS, SLOTS[:1], SLOTS[1:], ()]
    assert [transformer_of(pipe) for pipe in (both, one, last, none)] == [first, first, second, None]
    assert [transformer_of(both, slot) for slot in SLOTS] == [first, second]
    assert [transformer_of(one, slot) for slot in SLOTS] == [first, None]
    assert transformer_of(none, "transformer") is None
    put_transformer(both, other)
    put_transformer(last, other)
    assert (both.transformer, both.transformer_2) == (other, second)
    assert (last.transformer, last.transformer_2) == (None, other)
    put_transformer(both, first, "transformer_2")
    put_transformer(both, second, "transformer")
    assert (both.transformer, both.transformer_2) == (second, first)
