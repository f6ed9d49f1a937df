"""Which model is compiled: the one that the user has now, or a refusal that says what is different."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers import FirstBlockCacheConfig, WanTransformer3DModel
from peft import LoraConfig
from torch import nn

from mccompile import api
from mccompile.runtime.errors import ModelChanged, ModelTreated
from mccompile.runtime.state import ModelState
from tests.pipelines.conftest import Wan, actions, distance, generate, text, wan, wan_transformer

IN_PLACE: dict[str, Callable[[WanTransformer3DModel], object]] = {
    "text": lambda m: [p.mul_(1.5) for n, p in m.named_parameters() if "text_embedder" in n],
    "blocks": lambda m: [p.mul_(1.2) for n, p in m.named_parameters() if n.startswith("blocks")],
    "load_state_dict": lambda m: m.load_state_dict({n: v * 1.1 for n, v in m.state_dict().items()}),
}


@pytest.mark.parametrize("policy", ["compute", "top_motion"])
@pytest.mark.parametrize("change", IN_PLACE)
def test_weights_changed_in_place_are_the_ones_that_run(tiny_wan: Wan, change: str, policy: str) -> None:
    """The same prompt tensors before and after: nothing that was made of the old values is used again."""
    pipe, prompt = tiny_wan.pipe(), text()
    more = {"share_moving": 1.0} if policy == "top_motion" else {}
    compiled = tiny_wan.compile(pipe, policy, **more)
    before = generate(pipe, **prompt)
    IN_PLACE[change](tiny_wan.model)
    got = generate(pipe, **prompt)
    compiled.undo()
    plain = generate(pipe, **prompt)
    assert distance(before, plain) > 0.05
    assert distance(got, plain) < 1e-4


def add_hook(model: WanTransformer3DModel) -> object:
    return model.blocks[0].register_forward_hook(lambda *_: None)


def replace_block(model: WanTransformer3DModel) -> None:
    model.blocks[1] = nn.Identity()


def replace_data(model: WanTransformer3DModel) -> None:
    model.proj_out.weight.data = model.proj_out.weight.data * 1.2


STRUCTURE: dict[str, tuple[Callable[[WanTransformer3DModel], object], str]] = {
    "hook": (add_hook, "module `blocks.0` has other hooks"),
    "block": (replace_block, r"module `blocks\.1.* is gone"),
    "processor": (lambda m: m.set_attn_processor(type(m.blocks[0].attn1.processor)()), "other processor"),
    "dtype": (lambda m: m.to(torch.bfloat16), "is another tensor, or lies in other memory"),
    "data": (replace_data, "weight `proj_out.weight`"),
    "training": (lambda m: m.train(), "the model has other settings"),
    "cache": (lambda m: m.enable_cache(FirstBlockCacheConfig(threshold=0.2)), "has other forward"),
    "forward": (lambda m: vars(m).update(forward=partial(type(m).forward, m)), "the model has other forward"),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_another_structure_is_refused_before_the_first_step(own_wan: Wan, name: str) -> None:
    pipe = own_wan.pipe()
    compiled = own_wan.compile(pipe, "compute")
    change, words = STRUCTURE[name]
    change(own_wan.model)
    with pytest.raises(ModelChanged, match=words):
        generate(pipe)
    assert compiled.events == []


def add_adapter(model: WanTransformer3DModel) -> None:
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q"]), "one")
    model.eval()


ADAPTED: dict[str, tuple[Callable[[WanTransformer3DModel], object], str]] = {
    "added": (lambda m: None, r"module `blocks\.0\.attn1\.to_q\.base_layer` was added"),
    "scaled": (lambda m: m.set_adapters("one", 0.25), r"other adapters \(`scaling`\)"),
    "disabled": (lambda m: m.disable_lora(), r"other adapters \(`_disable_adapters`\)"),
    "fused": (lambda m: m.fuse_lora(), "has other"),
    "deleted": (lambda m: m.delete_adapters("one"), r"lora_A\.one` is gone"),
    "trained": (lambda m: [p.mul_(2) for n, p in m.named_parameters() if "lora_B" in n], ""),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapter_is_part_of_what_was_compiled(name: str) -> None:
    """One that comes, changes or goes after the compile is refused; only its values may change, and are followed."""
    change, words = ADAPTED[name]
    model = wan_transformer(layers=1)
    if name != "added":
        add_adapter(model)
    with torch.no_grad():
        state = ModelState(model, model)
        if name == "added":
            add_adapter(model)
        change(model)
    if not words:
        assert state.changed()
        return
    with pytest.raises(ModelChanged, match=words):
        state.changed()


@pytest.mark.parametrize("treat", [add_hook, STRUCTURE["cache"][0], STRUCTURE["forward"][0]])
def test_a_treated_model_is_refused_by_compile(treat: Callable[[WanTransformer3DModel], object]) -> None:
    pipe = wan()
    treat(pipe.transformer)
    with pytest.raises(ModelTreated, match="MC0613"):
        api.prepare(pipe, call=text())


def test_a_capture_of_another_model_is_refused(tiny_wan: Wan) -> None:
    other = wan_transformer()
    with torch.no_grad():
        other.proj_out.weight.mul_(2)
    with pytest.raises(ModelChanged, match=r"proj_out\.weight"):
        tiny_wan.compile(wan(model=other))


def test_a_model_that_torch_compiled_in_place_is_taken_as_it_is(tiny_wan: Wan) -> None:
    model = wan_transformer()
    pipe = wan(model=model)
    stock = generate(pipe)
    pipe.transformer = torch.compile(model, backend="eager")
    model.compile_repeated_blocks(backend="eager")
    given = pipe.transformer
    compiled = api.compile(pipe, "compute", backend="eager", call=text())
    assert distance(generate(pipe), stock) < 1e-5
    assert compiled.undo() is given
    assert pipe.transformer is given


def test_the_only_expert_is_compiled_where_it_is(tiny_wan: Wan) -> None:
    def pipe() -> object:
        made = wan(model=tiny_wan.model, transformer_2=tiny_wan.model, boundary_ratio=1.1)
        made.register_modules(transformer=None)
        return made

    both, ours = pipe(), pipe()
    own = generate(both)  # type: ignore[arg-type]
    compiled = tiny_wan.compile(ours, "compute")  # type: ignore[arg-type]
    assert torch.equal(generate(ours), own)  # type: ignore[arg-type]
    compiled.undo()
    assert ours.transformer is None  # type: ignore[attr-defined]
    assert ours.transformer_2 is tiny_wan.model  # type: ignore[attr-defined]
    compiled = tiny_wan.compile(ours)  # type: ignore[arg-type]
    assert distance(generate(ours), own) > 0  # type: ignore[arg-type]
    assert "r" in actions(compiled)
