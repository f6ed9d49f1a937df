"""What a forward may read beside weights: numbers, words and tensors, in modules, containers and objects of the user's.

`told` says what such a value is now, so that it can be compared with what it is later. It holds the tensors that it
tells of. A tensor that was exchanged for one with equal values is the same.
"""

from __future__ import annotations

import dataclasses
import sys
import zlib
from argparse import Namespace
from collections.abc import Collection, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import nn

from mccompile.capture.own import place_of
from mccompile.runtime.settings import PROCESSOR, frozen, is_plain

TORCH = frozenset(vars(nn.Module())) - {"training"}  # hooks and parts, which are looked at by themselves
_NOTES = frozenset(("_internal_dict", "_hf_peft_config_loaded", "_is_hf_initialized"))  # of diffusers
_FUSED = frozenset(("lora_scale", "_safe_fusing"))  # what a model notes of the last time that a LoRA was fused
DEEPEST = 4  # containers and objects within one another that are looked into
_CODE = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType)
_LIBRARIES = frozenset(("torch", "diffusers", "transformers", "accelerate", "peft", "numpy", *sys.stdlib_module_names))


class Same:
    """A tensor or a function: equal to itself, and to a tensor of the same values."""

    def __init__(self, value: object) -> None:
        self.value = value
        self.place = place_of(value) if isinstance(value, torch.Tensor) else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return False
        one, two = self.value, other.value
        if one is two:
            return self.place == other.place
        if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
            return False
        return (one.shape, one.dtype, one.device) == (two.shape, two.dtype, two.device) and torch.equal(one, two)

    __hash__ = None  # type: ignore[assignment]


class Itself:
    """A part of the model, whose values are looked at by themselves."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def settings_of(
    module: nn.Module, leave_out: Collection[str], parts: Collection[int] = ()
) -> tuple[tuple[str, object], ...]:
    """By name, what a module and the objects that it holds have; its tensors are looked at by themselves.

    leave_out: names of others. parts: the ids of the model's modules and weights.
    """
    found = []
    notes = _NOTES | _FUSED if callable(getattr(type(module), "fuse_lora", None)) else _NOTES
    for name, value in vars(module).items():
        if name in TORCH or name in notes or name in leave_out or isinstance(value, torch.Tensor):
            continue
        if is_plain(value):
            found.append((name, frozen(value)))
        elif name == PROCESSOR or is_data(value):
            found += [(f"{name}.{own}", told(one, parts)) for own, one in attributes_of(value).items()]
        elif isinstance(value, list | tuple | dict | np.ndarray):
            found.append((name, told(value, parts)))
    return tuple(found)


def told(value: object, parts: Collection[int] = (), deep: int = DEEPEST) -> object:
    """What a value is now. Two of these are equal where the forward reads the same. parts: see `settings_of`."""
    if is_plain(value):
        return frozen(value)
    if id(value) in parts:
        return Itself(value)
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), zlib.crc32(np.ascontiguousarray(value).tobytes())
    if isinstance(value, torch.Tensor) or (callable(value) and not isinstance(value, nn.Module) and not is_data(value)):
        return Same(value)
    return type(value), *((name, told(one, parts, deep - 1)) for name, one in inside(value) if deep)


def inside(value: object) -> Iterator[tuple[str, object]]:
    """By name, what a container, an object or a module holds. Objects of libraries are left out, unless they are data.

    A logger, a hook or a pipeline notes the course of each run.
    """
    if isinstance(value, nn.Module):
        yield from value.named_parameters(remove_duplicate=False)
        yield from value.named_buffers(remove_duplicate=False)
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", one) for key, one in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{place}]", one) for place, one in enumerate(value))
    elif is_data(value):
        yield from ((f".{name}", one) for name, one in vars(value).items())


def attributes_of(value: object) -> dict[str, object]:
    """The attributes of an object; none where it has no table of them."""
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else {}


def is_data(value: object) -> bool:
    """Whether an object is one whose attributes a forward reads: data, or of a class of the user's."""
    if isinstance(value, (*_CODE, nn.Module, torch.Tensor)) or not attributes_of(value):
        return False
    if isinstance(value, Namespace | SimpleNamespace) or dataclasses.is_dataclass(value):
        return True
    return type(value).__module__.partition(".")[0] not in _LIBRARIES


def leaves_in(
    value: object, name: str, parts: Collection[int], deep: int = DEEPEST
) -> Iterator[tuple[str, object]]:
    """By name, the plain values, tensors and arrays that a value is or holds, without those of the model's parts."""
    if is_plain(value) or isinstance(value, torch.Tensor | np.ndarray):
        yield name, value
    elif deep and id(value) not in parts:
        for below, one in inside(value):
            yield from leaves_in(one, f"{name}{below}", parts, deep - 1)


def parts_of(model: nn.Module) -> frozenset[int]:
    """The ids of a model's modules, parameters and buffers."""
    return frozenset(id(part) for part in (*model.modules(), *model.parameters(), *model.buffers()))

