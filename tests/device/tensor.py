"""Tensors of a simulated GPU: they say that they are on `cuda:0`, hold memory of the CPU, and compute for real."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as nnf

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")

# Operators whose Python bindings ask for a CUDA device before they reach the dispatcher.
_DIRECT = {"__invert__": "bitwise_not", "__and__": "bitwise_and", "__or__": "bitwise_or", "__pow__": "pow"}
_READS = ("__float__", "__int__", "__bool__", "__index__", "item", "tolist")


class OnDevice(torch.Tensor):
    """A tensor of the simulated device. memory: the tensor of the CPU that holds its values."""

    memory: torch.Tensor

    @staticmethod
    def __new__(cls, memory: torch.Tensor) -> OnDevice:
        assert not isinstance(memory, OnDevice)
        made = torch.Tensor._make_wrapper_subclass(
            cls, memory.size(), strides=memory.stride(), storage_offset=memory.storage_offset(), dtype=memory.dtype,
            layout=memory.layout, device=CUDA, requires_grad=False,
        )  # fmt: skip
        made.memory = memory.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return current().operator(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, device = getattr(func, "__name__", ""), current()
        if name in _READS:
            device.wait("read", name)
            return getattr(memory_of(args[0]), name)()
        match name:
            case "numpy" | "__array__":
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            case "__getitem__":
                return device.index(args[0], args[1])
            case "__setitem__":
                return device.assign(*args)
            case "scaled_dot_product_attention":
                return device.operator(aten.scaled_dot_product_attention.default, args, kwargs)
            case "contiguous":
                form = kwargs.get("memory_format", args[1] if len(args) > 1 else torch.contiguous_format)
                whole = args[0].memory.is_contiguous(memory_format=form)
                return args[0] if whole else aten.clone.default(args[0], memory_format=form)
            case "copy_":
                later = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
                return aten.copy_.default(args[0], args[1], later)
            case "untyped_storage" | "data_ptr":
                return getattr(args[0].memory, name)()
            case "__deepcopy__":
                return OnDevice(args[0].memory.clone())
        with torch._C.DisableTorchFunctionSubclass():
            try:
                return func(*args, **kwargs)
            except RuntimeError as error:
                name = _DIRECT.get(name, name)
                if "not linked with support for cuda" not in str(error) or not hasattr(aten, name):
                    raise
                return getattr(aten, name)(*args, **kwargs)


def on_device(tensor: torch.Tensor) -> OnDevice:
    """The tensor on the simulated device; no copy is counted."""
    return tensor if isinstance(tensor, OnDevice) else OnDevice(tensor.detach())


def memory_of(value: Any) -> Any:
    """The tensor of the CPU behind a tensor of the simulated device; anything else is itself."""
    return value.memory if isinstance(value, OnDevice) else value


def attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    **more: Any,
) -> Any:  # fmt: skip
    """torch's attention on the memory of the CPU."""
    q, k, v, mask = (memory_of(t) for t in (query, key, value, attn_mask))
    more["enable_gqa"] = more.get("enable_gqa", False) or q.size(1) != k.size(1)
    out = nnf.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal, **more)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


_running: list[Any] = []


def current() -> Any:
    """The simulated device that is switched on."""
    return _running[-1]


def switch_on(device: Any) -> None:
    _running.append(device)


def switch_off() -> None:
    _running.pop()
