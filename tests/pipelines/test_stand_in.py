"""Whoever looks at the compiled transformer, or changes it, looks at the user's own model and changes that."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers import ModelMixin, WanPipeline, WanTransformer3DModel, WanVideoToVideoPipeline
from torch import nn

from mccompile.runtime.errors import ModelChanged, NoClock, UnderAutocast
from mccompile.runtime.stand_in import StandIn
from tests.pipelines import conftest
from tests.pipelines.conftest import Wan, distance, wan

generate = partial(conftest.generate, num_frames=5, num_inference_steps=2)


def test_it_is_the_users_model_to_whoever_looks(tiny_wan: Wan) -> None:
    pipe, model = tiny_wan.pipe(), tiny_wan.model
    tiny_wan.compile(pipe)
    found = pipe.transformer
    assert type(found) is not WanTransformer3DModel
    assert isinstance(found, WanTransformer3DModel)
    assert issubclass(found.__class__, ModelMixin)  # as diffusers asks, before it scales or unloads a LoRA
    assert repr(found) == repr(model)
    assert dict(found.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert [name for name, _ in found.named_modules()] == [name for name, _ in model.named_modules()]
    assert found.state_dict().keys() == model.state_dict().keys()
    assert found.blocks is model.blocks


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda found: pickle.loads(pickle.dumps(found))])
def test_a_copy_of_it_is_a_copy_of_the_model(tiny_wan: Wan, copied: Callable[[nn.Module], nn.Module]) -> None:
    pipe = tiny_wan.pipe()
    tiny_wan.compile(pipe)
    found = copied(pipe.transformer)
    assert type(found) is WanTransformer3DModel
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in tiny_wan.model.state_dict().items())


def scaled(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value * 1.2 for name, value in model.state_dict().items()}


CHANGES: dict[str, Callable[[WanTransformer3DModel], object]] = {
    "a module": lambda m: setattr(m, "proj_out", nn.Linear(48, 16).eval().requires_grad_(False)),
    "a parameter": lambda m: setattr(m, "scale_shift_table", nn.Parameter(m.scale_shift_table * 2)),
    "not strict": lambda m: m.load_state_dict(scaled(m), strict=False),
    "by name": lambda m: [p.mul_(1.2) for n, p in m.named_parameters() if n.startswith("blocks.0")],
    "applied": lambda m: m.apply(lambda part: part.weight.mul_(1.1) if isinstance(part, nn.Linear) else None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_reach_the_model_and_the_graphs(own_wan: Wan, name: str) -> None:
    pipe = own_wan.pipe()
    compiled = own_wan.compile(pipe, "compute")
    before = generate(pipe)
    with torch.no_grad():
        CHANGES[name](pipe.transformer)
    got = generate(pipe)
    compiled.undo()
    plain = generate(pipe)
    assert distance(before, plain) > 0.01
    assert distance(got, plain) < 1e-5


def test_its_mode_and_dtype_are_the_models(own_wan: Wan) -> None:
    pipe = own_wan.pipe()
    own_wan.compile(pipe, "compute")
    pipe.transformer.train()
    assert own_wan.model.training
    with pytest.raises(ModelChanged, match="`training`"):
        generate(pipe)
    pipe.transformer.eval()
    generate(pipe)
    pipe.to(torch.bfloat16)
    assert own_wan.model.proj_out.weight.dtype == pipe.transformer.dtype == torch.bfloat16
    with pytest.raises(ModelChanged, match="another dtype"):
        generate(pipe)


class Holder(nn.Module):
    """A model with a setting of its own and a part."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.factor = nn.Linear(2, 2), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) * self.factor


def test_settings_and_parts_are_assigned_and_deleted_in_the_model() -> None:
    model = Holder()
    found = StandIn(model)
    found.kept = model  # while it sets itself up, all is its own
    found.set_up()
    found.factor, found.note = 2.0, 3
    assert (model.factor, "note" in vars(model), found.note) == (2.0, False, 3)
    found.other = nn.Linear(1, 1)
    assert set(dict(model.named_children())) == {"part", "other"}
    del found.other, found.note, found.factor
    assert set(dict(model.named_children())) == {"part"}
    assert "factor" not in vars(model)


def test_another_pipeline_of_its_parts_runs_the_plain_model_or_refuses(own_wan: Wan) -> None:
    pipe = own_wan.pipe()
    plain = generate(own_wan.pipe())
    compiled = own_wan.compile(pipe)
    with pytest.raises(TypeError, match="transformer"):  # diffusers asks for the very class, and says so in a warning
        WanVideoToVideoPipeline.from_pipe(pipe)
    other = WanPipeline.from_pipe(pipe, transformer=compiled.model)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(generate(other), plain)
    assert not compiled.events
    other = WanPipeline.from_pipe(pipe, transformer=pipe.transformer)
    with pytest.raises(NoClock, match="compile another one of the same parts too"):
        generate(other)


def test_autocast_is_refused(tiny_wan: Wan) -> None:
    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe, "compute")
    wanted = generate(pipe)
    compiled.events.clear()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UnderAutocast, match="MC0614"):
        generate(pipe)
    assert compiled.events == []
    assert torch.equal(generate(pipe), wanted)


def test_torch_compile_around_it_goes_with_it(tiny_wan: Wan) -> None:
    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe, "fixed_interval")
    wanted = generate(pipe)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert torch.equal(generate(pipe), wanted)
    again = tiny_wan.compile(pipe, "compute")
    with pytest.raises(NoClock):
        compiled(hidden_states=torch.zeros(1, 4, 2, 4, 6), timestep=torch.tensor([9]),
                 encoder_hidden_states=torch.zeros(1, 7, 16))  # fmt: skip
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    again.undo()
    assert pipe.transformer is tiny_wan.model
    assert distance(generate(pipe), generate(wan(model=tiny_wan.model))) == 0


def test_a_forward_that_is_put_on_the_stand_in_stays_there(own_wan: Wan) -> None:
    """Also where hooks that were removed have left the class's forward in the model."""
    model = own_wan.model
    vars(model)["forward"] = model.forward  # as diffusers leaves it when it removes hooks of the model itself
    pipe = own_wan.pipe()
    compiled = own_wan.compile(pipe, "compute")
    before, calls = generate(pipe, num_inference_steps=2), list[object]()
    own, left = compiled.forward, vars(model)["forward"]

    def forward(*args: object, **kwargs: object) -> object:
        calls.append(kwargs)
        return own(*args, **kwargs)

    pipe.transformer.forward = forward
    assert torch.equal(generate(pipe, num_inference_steps=2), before)
    assert len(calls) == 4
    assert vars(model)["forward"] is left
    del pipe.transformer.forward
    assert torch.equal(generate(pipe, num_inference_steps=2), before)
    assert len(calls) == 4
