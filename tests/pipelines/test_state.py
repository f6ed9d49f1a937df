"""Which model is compiled: the one that the user has now, or a refusal that says what is different."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig, WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers import transformer_wan
from peft import LoraConfig
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_hook

from mccompile import api
from mccompile.capture.own import own_weights
from mccompile.runtime.errors import ModelChanged, ModelTreated
from mccompile.runtime.state import ModelState
from tests.pipelines.conftest import Wan, actions, distance, generate, text, wan, wan_transformer


def replace_data(model: WanTransformer3DModel) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.2


def replace_parameters(model: WanTransformer3DModel) -> None:
    for block in model.blocks:
        block.attn1.to_v.weight = nn.Parameter(block.attn1.to_v.weight * 3, requires_grad=False)
    model.condition_embedder.text_embedder.linear_1.bias = nn.Parameter(torch.ones(48), requires_grad=False)


def average(model: WanTransformer3DModel) -> None:
    """As an exponential moving average is put in place: no version counter tells."""
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data * 1.2)


CHANGED: dict[str, Callable[[WanTransformer3DModel], object]] = {
    "text": lambda m: [p.mul_(1.5) for n, p in m.named_parameters() if "text_embedder" in n],
    "blocks": lambda m: [p.mul_(1.2) for n, p in m.named_parameters() if n.startswith("blocks")],
    "load_state_dict": lambda m: m.load_state_dict({n: v * 1.1 for n, v in m.state_dict().items()}),
    "assign": lambda m: m.load_state_dict({n: v * 1.2 for n, v in m.state_dict().items()}, assign=True),
    ".data": replace_data,
    ".data.copy_": average,
    "parameters": replace_parameters,
    "there and back": lambda m: m.to(torch.float64).to(torch.float32).proj_out.weight.mul_(1.2),
}


@pytest.mark.parametrize("policy", ["compute", "top_motion"])
@pytest.mark.parametrize("change", CHANGED)
def test_changed_weights_are_the_ones_that_run(own_wan: Wan, change: str, policy: str) -> None:
    """The same prompt tensors before and after: nothing that was made of the old values is used again."""
    pipe, short = own_wan.pipe(), {**text(), "num_inference_steps": 2, "num_frames": 5}
    more = {"share_moving": 1.0} if policy == "top_motion" else {}
    compiled = own_wan.compile(pipe, policy, **more)
    before = generate(pipe, **short)
    CHANGED[change](own_wan.model)
    got = generate(pipe, **short)
    compiled.undo()
    plain = generate(pipe, **short)
    assert distance(before, plain) > 0.05
    assert distance(got, plain) < 1e-4


def add_hook(model: WanTransformer3DModel) -> object:
    return model.blocks[0].register_forward_hook(lambda *_: None)


def replace_block(model: WanTransformer3DModel) -> None:
    model.blocks[1] = nn.Identity()


def other_shape(model: WanTransformer3DModel) -> None:
    model.proj_out.weight.data = model.proj_out.weight.data[:8]


def other_order(model: WanTransformer3DModel) -> None:
    model.proj_out.weight.data = model.proj_out.weight.data.T.contiguous().T


STRUCTURE: dict[str, tuple[Callable[[WanTransformer3DModel], object], str]] = {
    "hook": (add_hook, "module `blocks.0` has other hooks"),
    "block": (replace_block, r"module `blocks\.1.* is gone"),
    "processor": (lambda m: m.set_attn_processor(type(m.blocks[0].attn1.processor)()), "other processor"),
    "dtype": (lambda m: m.to(torch.bfloat16), "weight `.*` has another dtype: torch.bfloat16"),
    "shape": (other_shape, r"weight `proj_out.weight` has another shape: torch.Size\(\[8, 48\]\)"),
    "order": (other_order, r"weight `proj_out.weight` has another order in memory: \(1, 16\)"),
    "gone": (lambda m: m.proj_out.register_parameter("bias", None), "weight `proj_out.bias` is gone"),
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


def halved(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *given, **named: function(*given, **named) / 2


def test_functions_that_its_code_calls_are_part_of_a_model(own_wan: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who ship attention kernels advise to put them in torch's place."""
    pipe = own_wan.pipe()
    compiled = own_wan.compile(pipe, "compute")
    before = generate(pipe, num_inference_steps=2)
    compiled.clear()
    for place, name, words in (
        (nn.functional, "scaled_dot_product_attention", r"`torch\.nn\.functional\.scaled_dot_product_attention`"),
        (transformer_wan, "dispatch_attention_fn", r"another `diffusers\..*\.dispatch_attention_fn`"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(place, name, halved(getattr(place, name)))
            with pytest.raises(ModelChanged, match=words):
                generate(pipe, num_inference_steps=2)
    with attention_backend("_native_math"), pytest.raises(ModelChanged, match="_active_backend"):
        generate(pipe, num_inference_steps=2)
    assert compiled.events == []
    assert torch.equal(generate(pipe, num_inference_steps=2), before)


def test_hooks_of_all_modules_are_hooks_of_a_model(own_wan: Wan) -> None:
    pipe = own_wan.pipe()
    own_wan.compile(pipe, "compute")
    hook = register_module_forward_hook(lambda _, __, made: made * 0.9 if isinstance(made, torch.Tensor) else None)
    try:
        with pytest.raises(ModelChanged, match="all modules have other hooks"):
            generate(pipe, num_inference_steps=2)
        with pytest.raises(ModelTreated, match="every module has hooks"):
            own_wan.compile(own_wan.pipe(), "compute")
    finally:
        hook.remove()
    generate(pipe, num_inference_steps=2)


def test_one_capture_serves_two_models_with_equal_weights(own_wan: Wan) -> None:
    """The graphs read the weights of the model whose generation is under way."""
    other = wan_transformer()
    one, two = own_wan.pipe(), wan(model=other)
    own_wan.compile(one, "compute")
    own_wan.compile(two, "compute")
    before = generate(one, num_inference_steps=2)
    assert torch.equal(generate(two, num_inference_steps=2), before)
    other.proj_out.weight.mul_(2)
    assert distance(generate(two, num_inference_steps=2), before) > 0.05
    assert torch.equal(generate(one, num_inference_steps=2), before)


class Halved(nn.Linear):
    """Another layer with the same weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


@dataclass(frozen=True, slots=True)
class Shape:
    """An object without `__dict__`, as MAGI-1's transformer holds one."""

    rows: int


class Settings(nn.Module):
    """Settings as modules have them: numbers, lists, an object that holds some."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self._scales, self.nested = nn.Linear(2, 2), [1.0, 2.0], {"a": [1]}
        self.more, self.shape = SimpleNamespace(factor=1.0), Shape(1)
        self.processor = Processor()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.processor(self, x) * self._scales[0] * self.more.factor


class Processor:
    """Runs in the place of a module's own code."""

    def __init__(self) -> None:
        self.scale = 1.0

    def __call__(self, module: Settings, x: torch.Tensor) -> torch.Tensor:
        return module.one(x) * self.scale


def other_class(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
    old = vars(kind)[name]
    monkeypatch.setattr(kind, name, lambda *args, **kwargs: old(*args, **kwargs) * 2)


PARTS: dict[str, tuple[Callable[[Settings, pytest.MonkeyPatch], object], str]] = {
    "list": (lambda m, _: m._scales.append(3.0), "other settings (`_scales`)"),
    "in a list": (lambda m, _: m._scales.__setitem__(0, 3.0), "other settings (`_scales`)"),
    "nested": (lambda m, _: m.nested["a"].append(2), "other settings (`nested`)"),
    "object": (lambda m, _: vars(m.more).update(factor=2.0), "other settings (`more.factor`)"),
    "new": (lambda m, _: vars(m).update(eps=1e-3), "other settings (`eps`)"),
    "processor's": (lambda m, _: vars(m.processor).update(scale=2.0), "other settings (`processor.scale`)"),
    "class": (lambda m, _: setattr(m.one, "__class__", Halved), "module `one` has other type"),
    "forward": (lambda m, p: other_class(p, Settings, "forward"), "the model has other code of its class"),
    "call": (lambda m, p: other_class(p, Processor, "__call__"), "the model has other code of its class"),
    "of another": (lambda m, _: vars(m.one).update(forward=nn.Linear(2, 2).forward), "module `one` has other forward"),
}


@pytest.mark.parametrize("name", PARTS)
def test_settings_and_code_are_part_of_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Settings()
    state = ModelState(model, fx.GraphModule(model, fx.Graph()))
    assert not state.changed()
    change, words = PARTS[name]
    change(model, monkeypatch)
    with pytest.raises(ModelChanged, match=re.escape(words)):
        state.changed()


class Tied(nn.Module):
    """One weight under two names, and another one that no graph reads by its second name."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))  # type: ignore[no-any-return]


def test_tied_weights_are_followed_together_and_refused_apart() -> None:
    model = Tied().eval().requires_grad_(False)
    graph = torch.export.export(model, (torch.ones(4, 4),)).module()
    assert isinstance(graph, fx.GraphModule)
    own_weights(graph)
    state = ModelState(model, graph)
    assert not state.changed()
    model.one.weight = model.two.weight = nn.Parameter(torch.eye(4) * 2, requires_grad=False)
    assert state.changed()
    assert torch.equal(graph(torch.ones(4, 4)), model(torch.ones(4, 4)))
    model.two.weight = nn.Parameter(torch.eye(4), requires_grad=False)
    with pytest.raises(ModelChanged, match=r"weights `one.weight`, `two.weight` were one tensor, and are no longer"):
        state.changed()


def test_a_prompt_with_other_values_is_another_prompt(own_wan: Wan) -> None:
    """In mid-run by `.data`, and between two runs by numpy: no version counter tells."""

    def run(pipe: DiffusionPipeline) -> list[torch.Tensor]:
        values = np.ones((1, 7, 16), dtype=np.float32)
        prompt = torch.from_numpy(values)

        def other(pipe: DiffusionPipeline, step: int, time: object, given: dict[str, object]) -> dict[str, object]:
            if step == 1:
                prompt.data = torch.full((1, 7, 16), -1.0)
            return given

        more = {"prompt_embeds": prompt, "num_inference_steps": 4}
        made = [generate(pipe, **more)]
        values *= 3
        made.append(generate(pipe, **more))
        return [*made, generate(pipe, **more, callback_on_step_end=other)]

    pipe = own_wan.pipe()
    compiled = own_wan.compile(pipe, "compute")
    got = run(pipe)
    compiled.undo()
    plain = run(pipe)
    assert distance(plain[1], plain[0]) > 1e-3
    assert distance(plain[2], plain[1]) > 1e-3
    for one, other in zip(got, plain, strict=True):
        assert torch.equal(one, other)


def test_weights_changed_by_a_callback_are_the_ones_of_the_next_step(own_wan: Wan) -> None:
    def changing(pipe: object, index: int, timestep: object, kept: dict[str, object]) -> dict[str, object]:
        if index == 3:
            own_wan.model.condition_embedder.text_embedder.linear_1.weight.mul_(2)
        if index == 4:
            add_hook(own_wan.model)
        return kept

    pipe = own_wan.pipe()
    compiled = own_wan.compile(pipe)
    with pytest.raises(ModelChanged, match="other hooks"):
        generate(pipe, callback_on_step_end=changing)
    told = [(e.step, e.why) for e in compiled.events if e.branch == "cond"]
    assert told[-2:] == [(3, "planned"), (4, "other weights")]


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
        state = ModelState(model, fx.GraphModule(model, fx.Graph()))
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
