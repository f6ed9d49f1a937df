"""LoRA adapters that are present at compile time: their scales are inputs of the captured graphs.

before: result + lora_B(lora_A(x)) * 0.25;  after: result + lora_B(lora_A(x)) * scale, a weight of the graph

While a model is captured, every adapter is active and every scale is a tensor. So other scales, other active adapters,
disabled ones, and a scale in the arguments of a call change values and no structure. An adapter that comes or
goes, or is fused, changes the structure (state.py).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from mccompile.capture.own import weights_read

PREFIX = "scale_of_adapter_"  # of the buffers that a layer has while it is captured
SCALE = "scale"  # in the dictionary of a call


class _Tensors(dict[str, object]):
    """The scales of a layer while it is captured. They are looked up when they are read: export puts others in."""

    def __init__(self, layer: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__(dict.fromkeys(names))
        self._layer = layer

    def __getitem__(self, name: str) -> object:
        return self._layer._buffers[PREFIX + name]


def adapters_of(layer: nn.Module) -> tuple[str, ...]:
    """The adapters of a layer whose scales can be inputs: plain LoRA, not fused. Empty for every other module."""
    own = vars(layer)
    scaling, downs = own.get("scaling"), layer._modules.get("lora_A")
    if not isinstance(scaling, dict) or not isinstance(downs, nn.ModuleDict):
        return ()
    if own.get("merged_adapters") or own.get("lora_variant") or layer._modules.get("lora_variant"):
        return ()
    return tuple(name for name in downs if name in scaling)


def scale_of(layer: nn.Module, adapter: str) -> float:
    """What a layer multiplies an adapter's result by: 0 where it is not active."""
    own = vars(layer)
    active = own.get("_active_adapter", ())
    if own.get("_disable_adapters") or adapter not in ([active] if isinstance(active, str) else active):
        return 0.0
    return float(own["scaling"][adapter])


def is_scale(name: str) -> bool:
    """Says whether a tensor of a graph is the scale of an adapter."""
    return name.rpartition(".")[2].startswith(PREFIX)


@contextlib.contextmanager
def open_scales(model: nn.Module) -> Iterator[None]:
    """Inside, every scale is a tensor, and every adapter is active. The model is as before afterwards."""
    kept: list[tuple[nn.Module, dict[str, object]]] = []
    for layer in model.modules():
        names = adapters_of(layer)
        if not names:
            continue
        own = vars(layer)
        device = next(layer._modules["lora_A"].parameters()).device
        values = {n: torch.tensor(scale_of(layer, n), dtype=torch.float32, device=device) for n in names}
        kept.append((layer, {n: own[n] for n in ("scaling", "_active_adapter", "_disable_adapters")}))
        for name, value in values.items():
            layer.register_buffer(PREFIX + name, value, persistent=False)
        own |= {"scaling": _Tensors(layer, names), "_active_adapter": [*names], "_disable_adapters": False}
    try:
        yield
    finally:
        for layer, before in kept:
            for name in [n for n in layer._buffers if n.startswith(PREFIX)]:
                delattr(layer, name)
            vars(layer).update(before)


@dataclass(frozen=True, slots=True)
class _Scale:
    """A scale that a graph reads. read: the graph's own tensor."""

    layer: nn.Module
    adapter: str
    read: torch.Tensor


class AdapterScales:
    """The scales that the graphs of one model read, and what they should be."""

    def __init__(self, model: nn.Module, graph: fx.GraphModule) -> None:
        self._scales: list[_Scale] = []
        layers: set[str] = set()
        for name, read in weights_read(graph).items():
            path, _, leaf = name.rpartition(".")
            if is_scale(name):
                layers.add(path)
                self._scales.append(_Scale(model.get_submodule(path), leaf.removeprefix(PREFIX), read))
        self.layers = frozenset(layers)  # whose scales and active adapters may change
        self._argument = _argument_of(model) if self._scales else None
        self._set: tuple[float, ...] = ()

    def split(self, call: Mapping[str, object]) -> tuple[dict[str, object], float]:
        """The call without its scale for all adapters, and that scale; 1 where it has none."""
        given = call.get(self._argument) if self._argument is not None else None
        if self._argument is None or not isinstance(given, Mapping) or SCALE not in given:
            return dict(call), 1.0
        rest = {k: v for k, v in given.items() if k != SCALE}
        return {**call, self._argument: rest or None}, float(given[SCALE])

    def follow(self, factor: float) -> bool:
        """Gives the graphs the scales of now, times `factor`. Says whether any is another one than it was set to."""
        wanted = tuple(scale_of(s.layer, s.adapter) * factor for s in self._scales)
        for scale, value in zip(self._scales, wanted, strict=True):
            scale.read.fill_(value)
        changed, self._set = wanted != self._set, wanted
        return changed


def without_scale(model: nn.Module, call: Mapping[str, object]) -> dict[str, object]:
    """A recorded call without its scale for all adapters, which is no constant of the graph."""
    argument = _argument_of(model) if any(adapters_of(layer) for layer in model.modules()) else None
    given = call.get(argument) if argument is not None else None
    if argument is None or not isinstance(given, Mapping) or SCALE not in given:
        return dict(call)
    rest = {k: v for k, v in given.items() if k != SCALE}
    return {**call, argument: rest} if rest else {k: v for k, v in call.items() if k != argument}


def _argument_of(model: nn.Module) -> str | None:
    """The argument of a forward whose entry `scale` is for all adapters (a decorator of diffusers names it)."""
    forward = type(model).forward
    if inspect.unwrap(forward) is forward or not inspect.isfunction(forward):
        return None
    name = inspect.getclosurevars(forward).nonlocals.get("kwargs_name")
    return name if isinstance(name, str) else None
