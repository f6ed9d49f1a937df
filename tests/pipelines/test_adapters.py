"""The scales of LoRA adapters that are there at compile time follow what the user sets, without a new capture."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig

from mccompile import api
from mccompile.runtime.adapters import AdapterScales, adapters_of, scale_of
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.errors import ModelChanged
from mccompile.runtime.state import ModelState
from tests.pipelines import conftest
from tests.pipelines.conftest import Wan, distance, text, wan, wan_transformer

generate = partial(conftest.generate, num_frames=5, num_inference_steps=2)


def adapted(*names: str, **more: object) -> WanTransformer3DModel:
    model = wan_transformer(layers=1)
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_out.0"], **more)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a second adapter
            model.add_adapter(config, name)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def compiled_pipe() -> tuple[WanPipeline, CompiledModel]:
    """One of two adapters is active at compile time, scaled in half."""
    pipe = wan(model=adapted("one", "two"))
    pipe.transformer.set_adapters("one", 0.5)
    return pipe, api.compile(pipe, "compute", backend="eager", call=text())


CHANGES: dict[str, Callable[[WanTransformer3DModel], object]] = {
    "as it was": lambda m: None,
    "scaled": lambda m: m.set_adapters("one", 0.25),
    "other": lambda m: m.set_adapters("two"),
    "two with weights": lambda m: m.set_adapters(["one", "two"], [0.7, -0.3]),
    "disabled": lambda m: m.disable_lora(),
    "enabled again": lambda m: (m.disable_lora(), m.enable_lora()),
    "trained": lambda m: [p.data.mul_(2) for n, p in m.named_parameters() if "lora_B" in n],
}


@pytest.mark.parametrize("more", [{}, {"attention_kwargs": {"scale": 0.6}}], ids=["", "scale of the call"])
@pytest.mark.parametrize("change", CHANGES)
def test_scales_and_active_adapters_follow(
    compiled_pipe: tuple[WanPipeline, CompiledModel], change: str, more: dict[str, object]
) -> None:
    pipe, compiled = compiled_pipe
    model = compiled.model
    assert isinstance(model, WanTransformer3DModel)
    model.enable_lora()
    model.set_adapters("one", 0.5)
    before = generate(pipe)
    CHANGES[change](model)
    got = generate(pipe, **more)
    clock = compiled.clock
    assert clock is not None
    compiled.undo()
    plain = generate(pipe, **more)
    compiled.install(pipe, clock)
    assert distance(got, plain) < 1e-5
    assert (distance(before, plain) > 1e-3) == (change not in ("as it was", "enabled again") or bool(more))


BY_PIPELINE: dict[str, Callable[[WanPipeline], object]] = {
    "scaled": lambda p: p.set_adapters("one", 0.25),
    "other": lambda p: p.set_adapters("two"),
    "disabled": lambda p: p.disable_lora(),
    "enabled again": lambda p: (p.disable_lora(), p.enable_lora(), p.set_adapters("two", 0.7)),
}


@pytest.mark.parametrize("change", BY_PIPELINE)
def test_the_pipelines_own_functions_reach_the_adapters(
    compiled_pipe: tuple[WanPipeline, CompiledModel], change: str
) -> None:
    pipe, compiled = compiled_pipe
    pipe.enable_lora()
    pipe.set_adapters("one", 0.5)
    assert pipe.get_list_adapters() == {"transformer": ["one", "two"]}
    before = generate(pipe)
    BY_PIPELINE[change](pipe)
    got = generate(pipe)
    clock = compiled.clock
    assert clock is not None
    compiled.undo()
    plain = generate(pipe)
    compiled.install(pipe, clock)
    assert distance(before, plain) > 1e-3
    assert distance(got, plain) < 1e-5


@pytest.mark.parametrize("change", ["fused", "deleted", "unloaded"])
def test_adapters_that_go_by_the_pipelines_own_functions_are_refused(own_wan: Wan, change: str) -> None:
    """What was loaded and is gone again leaves the model as it was: it runs."""
    pipe = own_wan.pipe()
    own_wan.compile(pipe, "compute")
    before = generate(pipe)
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"])
    pipe.transformer.add_adapter(config, "late")
    with pytest.raises(ModelChanged, match="was added"):
        generate(pipe)
    match change:
        case "fused":
            pipe.fuse_lora(components=["transformer"])
            assert pipe.num_fused_loras == 1
            with pytest.raises(ModelChanged, match="was added"):
                generate(pipe)
            return
        case "deleted":
            pipe.delete_adapters("late")
            assert not [name for name, _ in own_wan.model.named_parameters() if "late" in name]
        case _:
            pipe.unload_lora_weights()
            own_wan.model.eval()
            assert torch.equal(generate(pipe), before)


def test_a_callback_may_switch_adapters_in_mid_run(compiled_pipe: tuple[WanPipeline, CompiledModel]) -> None:
    pipe, compiled = compiled_pipe
    model = compiled.model
    assert isinstance(model, WanTransformer3DModel)

    def switch(pipe: object, index: int, timestep: object, kept: dict[str, object]) -> dict[str, object]:
        model.set_adapters("two" if index == 0 else "one", 0.8)
        return kept

    model.set_adapters("one", 0.8)
    got = generate(pipe, callback_on_step_end=switch)
    clock = compiled.clock
    assert clock is not None
    compiled.undo()
    plain = generate(pipe, callback_on_step_end=switch)
    compiled.install(pipe, clock)
    assert distance(got, plain) < 1e-5


@pytest.mark.parametrize("change", ["fused", "deleted", "added"])
def test_adapters_that_come_or_go_are_refused(
    compiled_pipe: tuple[WanPipeline, CompiledModel], change: str
) -> None:
    compiled = compiled_pipe[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # copies of torch's tree specs
        model, graph = copy.deepcopy((compiled.model, compiled.captured.module))
    assert isinstance(model, WanTransformer3DModel)
    state = ModelState(model, graph, AdapterScales(model, graph).layers)
    model.set_adapters("two", 0.4)
    assert not state.changed()
    match change:
        case "fused":
            model.fuse_lora()
        case "deleted":
            model.delete_adapters("one")
        case _:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                model.add_adapter(LoraConfig(r=2, target_modules=["to_k"]), "late")
    with pytest.raises(ModelChanged, match="MC0612"):
        state.changed()


def test_a_capture_leaves_the_adapters_as_they_were(compiled_pipe: tuple[WanPipeline, CompiledModel]) -> None:
    model = compiled_pipe[1].model
    layers = [layer for layer in model.modules() if adapters_of(layer)]
    assert len(layers) == 4
    assert all(type(vars(layer)["scaling"]) is dict for layer in layers)
    assert not [name for name, _ in model.named_buffers() if "scale_of_adapter" in name]
    model.set_adapters("two", 0.4)  # type: ignore[operator]
    assert [(scale_of(layers[0], name)) for name in ("one", "two")] == [0.0, 0.4]


def test_an_adapter_whose_scale_is_no_factor_stays_a_constant() -> None:
    """DoRA divides by a norm in which the scale takes part."""
    model = adapted("one", use_dora=True)
    assert not any(adapters_of(layer) for layer in model.modules())
