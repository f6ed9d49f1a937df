"""Puts models and what was captured of them on the simulated device, as a capture on a GPU would have left them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.fx.node import map_aggregate

from mccompile.api import Prepared
from mccompile.capture.part import Part
from tests.device.tensor import CUDA, OnDevice, on_device


class Moving:
    """Each tensor is moved once: what shares memory on the CPU shares it on the device."""

    def __init__(self) -> None:
        self._moved: dict[tuple[object, ...], tuple[torch.Tensor, OnDevice]] = {}
        self._back: list[Callable[[], object]] = []

    def value(self, value: Any) -> Any:
        """A tensor of the device for a tensor; anything else is itself."""
        if not isinstance(value, torch.Tensor):
            return value
        place = value.data_ptr() or id(value)  # a graph has tensors of its own where the model's values lie
        key = (place, value.shape, value.stride(), value.dtype)
        return self._moved.setdefault(key, (value, on_device(value)))[1]

    def module(self, module: torch.nn.Module) -> None:
        """Parameters, buffers and plain tensors of a module, and the devices that its graphs name."""
        for part in module.modules():
            for own in (part._parameters, part._buffers, vars(part)):
                for name, value in list(own.items()):
                    if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice):
                        own[name] = self.value(value)  # type: ignore[index]
                        self._back.append(lambda own=own, name=name, value=value: own.update({name: value}))  # type: ignore[misc]
            if isinstance(part, torch.fx.GraphModule):
                self._graph(part)

    def _graph(self, module: torch.fx.GraphModule) -> None:
        named = [
            (n, n.args, n.kwargs)
            for n in module.graph.nodes
            if map_aggregate((n.args, n.kwargs), _there) != (n.args, n.kwargs)
        ]
        for node, args, kwargs in named:
            node.args, node.kwargs = map_aggregate((args, kwargs), _there)
            self._back.append(lambda n=node, a=args, k=kwargs: (setattr(n, "args", a), setattr(n, "kwargs", k)))  # type: ignore[misc]
        module.recompile()
        self._back.insert(0, module.recompile)  # the last thing that is undone

    def prepared(self, prepared: Prepared) -> Prepared:
        """What was captured, with its graphs and example calls on the device."""
        model = prepared.model
        forms = [part for kind in model.kinds for part in (kind.full, kind.partial, kind.allocate)]
        for part in (model.module, model.prelude, model.postlude, model.gather, *forms):
            if part is not None:
                self.module(part.module if isinstance(part, Part) else part)
        calls = tuple({n: self.value(v) for n, v in call.items()} for call in prepared.calls)
        return replace(prepared, calls=calls)

    def undo(self) -> None:
        """Everything is on the CPU again."""
        while self._back:
            self._back.pop()()


@contextmanager
def moved(model: torch.nn.Module, prepared: Prepared) -> Iterator[tuple[Moving, Prepared]]:
    """A model and what was captured of it on the device, for as long as the context lasts."""
    moving = Moving()
    try:
        moving.module(model)
        yield moving, moving.prepared(prepared)
    finally:
        moving.undo()


def _there(value: Any) -> Any:
    return CUDA if isinstance(value, torch.device) and value.type == "cpu" else value
