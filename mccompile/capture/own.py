"""Gives a captured graph tensors of its own for its weights. They lie in the memory of the model's tensors.

before: get_attr `proj.weight` is the model's own Parameter;  after: a tensor of the graph, in the same memory

All parts that are cut from the graph name the same tensors. So when the model has its values elsewhere, every part
follows by one assignment (`point_at`), and nothing that the user has is changed.
"""

from __future__ import annotations

import weakref
from typing import TypeAlias

import torch
from torch import fx, nn

from mccompile.capture.part import attribute

_MODEL = "captured of"  # in the facts of a graph module


def own(value: torch.Tensor) -> torch.Tensor:
    """A tensor in the memory of a weight, without its history. What is no plain tensor stays as it is."""
    return value.detach() if is_plain(value) else value


def is_plain(value: object) -> bool:
    """Whether a value is a tensor with a place of its own in memory, and no stand-in for others."""
    return type(value) in (torch.Tensor, nn.Parameter)


def place_of(value: torch.Tensor) -> int | None:
    """Where its values lie; tensors that stand for others have no place of their own."""
    return value.data_ptr() if is_plain(value) else None


Mark: TypeAlias = tuple[int | None, int | None]  # version and place


def mark_of(value: torch.Tensor) -> Mark:
    """What changes when a tensor is changed: in place, or by other values that are given to it (`.data`).

    A tensor of inference mode counts no versions. Writing to `.data` or to an array of numpy over it goes unseen.
    """
    return None if value.is_inference() else value._version, place_of(value)


def own_weights(module: fx.GraphModule) -> None:
    """Replaces every tensor of a graph module by one of its own, as a buffer of the same name."""
    for owner in module.modules():
        for name, value in [*owner._parameters.items(), *owner._buffers.items()]:
            if value is not None and is_plain(value):
                lasting = name in owner._parameters or name not in owner._non_persistent_buffers_set
                delattr(owner, name)
                owner.register_buffer(name, own(value), persistent=lasting)


def note_model(graph: fx.GraphModule, model: nn.Module) -> None:
    """Notes which model a graph was captured of."""
    graph.meta[_MODEL] = weakref.ref(model)


def is_of(graph: fx.GraphModule, model: nn.Module) -> bool:
    """Says whether a graph was captured of this very model, whatever values its weights have now."""
    known = graph.meta.get(_MODEL)
    return known is not None and known() is model


def weights_read(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """The tensors that a graph reads, by the name that it has for them."""
    names = dict.fromkeys(str(node.target) for node in module.graph.find_nodes(op="get_attr"))
    found = {name: attribute(module, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def point_at(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Lets a tensor of a graph's own lie where `values` lie: the same shape, dtype, device and order of axes."""
    tensor.data = values.detach()
