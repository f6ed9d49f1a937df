"""Scales of adapters by themselves: layers that hold them, what a graph reads, and what a call says of them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from mccompile.runtime.adapters import (
    AdapterScales,
    adapters_of,
    is_scale,
    open_scales,
    scale_of,
    without_scale,
)


def takes_scale(kwargs_name: str) -> Callable[[Any], Any]:
    """Names the argument whose entry `scale` is for all adapters, as the decorator of diffusers does."""

    def around(forward: Any) -> Any:
        @functools.wraps(forward)
        def inner(self: object, *args: object, **kwargs: Any) -> object:
            assert kwargs_name
            return forward(self, *args, **kwargs)

        return inner

    return around


class Lora(nn.Module):
    """A layer as peft makes it, with two adapters of which one is active."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.ModuleDict({"one": nn.Linear(2, 1), "two": nn.Linear(2, 1)})
        self.scaling: Any = {"one": 0.5, "two": 3.0, "gone": 1.0}
        self._active_adapter: Any = ["one"]
        self._disable_adapters = False
        self.merged_adapters = list[str]()
        self.lora_variant: Any = nn.ModuleDict()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self._active_adapter:
            x = x * self.scaling[name]
        return x


class Adapted(nn.Module):
    """A plain layer, one with adapters, and a forward that takes a scale for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.layer = nn.Linear(2, 2), Lora()

    @takes_scale("attention_kwargs")
    def forward(self, x: torch.Tensor, attention_kwargs: dict[str, object] | None = None) -> torch.Tensor:
        found: torch.Tensor = self.layer(x)
        return found


class Unnamed(Adapted):
    """Its decorator names no argument."""

    @takes_scale(3)  # type: ignore[arg-type]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Undecorated(Adapted):
    """No decorator says which argument has the scale."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x


def of_other_words(kwargs_name: str) -> Callable[..., torch.Tensor]:
    """A forward that has a word of that name around it, and no decorator."""

    def forward(self: object, x: torch.Tensor) -> torch.Tensor:
        return x if kwargs_name else -x

    return forward


class Around(Adapted):
    """The name in its forward is its own."""

    forward = of_other_words("attention_kwargs")  # type: ignore[assignment]


def test_plain_adapters_alone_have_scales_that_can_be_inputs() -> None:
    assert adapters_of(Lora()) == ("one", "two")
    assert adapters_of(nn.Linear(1, 1)) == ()
    for name, value in (
        ("merged_adapters", ["one"]), ("lora_variant", nn.ModuleDict({"one": nn.Linear(1, 1)})), ("scaling", [1.0]),
        ("lora_A", nn.Linear(1, 1)),
    ):  # fmt: skip
        layer = Lora()
        setattr(layer, name, value)
        assert adapters_of(layer) == (), name
    layer = Lora()
    del layer.lora_variant
    vars(layer)["lora_variant"] = {"one": "dora"}
    assert adapters_of(layer) == ()
    unscaled = Lora()
    unscaled.scaling = {"two": 1.0}
    assert adapters_of(unscaled) == ("two",)


def test_a_scale_counts_while_its_adapter_is_active() -> None:
    layer = Lora()
    assert (scale_of(layer, "one"), scale_of(layer, "two")) == (0.5, 0.0)
    layer._active_adapter = "two"
    assert (scale_of(layer, "one"), scale_of(layer, "two")) == (0.0, 3.0)
    layer._active_adapter = "twofold"
    assert scale_of(layer, "two") == 0.0
    layer._active_adapter, layer._disable_adapters = ["one", "two"], True
    assert (scale_of(layer, "one"), scale_of(layer, "two")) == (0.0, 0.0)
    del layer._active_adapter, layer._disable_adapters
    assert scale_of(layer, "one") == 0.0


def test_the_tensor_of_a_scale_is_told_by_its_own_name() -> None:
    assert is_scale("blocks.0.to_q.scale_of_adapter_one")
    assert not is_scale("scale_of_adapter_one.weight")
    assert not is_scale("blocks.scale")


def test_while_a_model_is_captured_every_scale_is_a_tensor() -> None:
    model = Adapted()
    before, own = dict(vars(model.layer)), model.layer.scaling
    x = torch.ones(1)
    with open_scales(model):
        buffers = dict(model.named_buffers())
        assert {n: (v.item(), v.dtype) for n, v in buffers.items()} == {
            "layer.scale_of_adapter_one": (0.5, torch.float32), "layer.scale_of_adapter_two": (0.0, torch.float32),
        }  # fmt: skip
        assert not [name for name in model.state_dict() if "scale_of" in name]
        assert (model.layer._active_adapter, model.layer._disable_adapters) == (["one", "two"], False)
        assert list(model.layer.scaling) == ["one", "two"]
        model.layer._buffers["scale_of_adapter_two"] = torch.tensor(8.0)  # as export puts another one there
        assert model.layer(x).item() == 4.0
    assert not list(model.named_buffers())
    assert dict(vars(model.layer)) == before
    assert model.layer.scaling is own
    model.layer._disable_adapters = True
    with contextlib.suppress(KeyError), open_scales(model):
        assert model.layer._disable_adapters is False
        raise KeyError
    assert model.layer._disable_adapters is True
    assert model.layer.scaling is own


class Graph(nn.Module):
    """What reads a weight and the scales of both adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Module()
        self.layer.register_buffer("scale_of_adapter_one", torch.zeros(()))
        self.layer.register_buffer("scale_of_adapter_two", torch.zeros(()))
        self.layer.register_buffer("weight", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: Any = x * self.layer.scale_of_adapter_one + x * self.layer.scale_of_adapter_two * self.layer.weight
        return made  # type: ignore[no-any-return]


def test_a_graph_gets_the_scales_of_now() -> None:
    model, graph = Adapted(), fx.symbolic_trace(Graph())
    scales = AdapterScales(model, graph)
    assert scales.layers == {"layer"}
    x = torch.tensor(2.0)
    assert scales.follow(1.0) is True
    assert scales.follow(1.0) is False
    assert graph(x).item() == 1.0
    assert scales.follow(0.5) is True
    assert graph(x).item() == 0.5
    model.layer._active_adapter = ["one", "two"]
    assert scales.follow(0.5) is True
    assert graph(x).item() == 3.5
    assert graph.layer.weight.item() == 1.0


def test_a_scale_of_a_call_is_taken_out_of_it() -> None:
    scales = AdapterScales(Adapted(), fx.symbolic_trace(Graph()))
    both, other = {"attention_kwargs": {"scale": 2, "more": 1}}, {"x": 1, "attention_kwargs": {"more": 1}}
    assert scales.split(both) == ({"attention_kwargs": {"more": 1}}, 2.0)
    assert scales.split({"x": 1, "attention_kwargs": {"scale": 0.5}}) == ({"x": 1, "attention_kwargs": None}, 0.5)
    for call in (other, {"x": 1}, {"attention_kwargs": None}, {"attention_kwargs": ["scale"]}):
        assert scales.split(call) == (call, 1.0)
    without = AdapterScales(Adapted(), fx.symbolic_trace(nn.Sequential(nn.Linear(1, 1))))
    assert without.layers == frozenset()
    assert without.split(both) == (both, 1.0)
    assert without.follow(2.0) is False


def test_a_recorded_call_has_no_scale_where_the_model_has_adapters() -> None:
    both, alone = {"x": 1, "attention_kwargs": {"scale": 2, "more": 1}}, {"x": 1, "attention_kwargs": {"scale": 2}}
    assert without_scale(Adapted(), both) == {"x": 1, "attention_kwargs": {"more": 1}}
    assert without_scale(Adapted(), alone) == {"x": 1}
    for call in ({"x": 1}, {"x": 1, "attention_kwargs": {"more": 1}}, {"attention_kwargs": ["scale"]}):
        assert without_scale(Adapted(), call) == call
    plain = Adapted()
    del plain.layer
    for model in (plain, Unnamed(), Undecorated(), Around()):
        assert without_scale(model, both) == both
