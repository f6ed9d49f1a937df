"""What a forward may read beside tensors: settings of a module and of objects that it holds, and its class's code."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from types import FunctionType, SimpleNamespace

import torch
from torch import nn

_PLAIN = (bool, int, float, str, complex, enum.Enum, torch.dtype, torch.device)
_TORCH = frozenset(vars(nn.Module())) - {"training"}  # hooks and parts, which are looked at by themselves
_NOTES = frozenset(("_internal_dict", "_hf_peft_config_loaded", "_is_hf_initialized"))  # of diffusers
_FUSED = frozenset(("lora_scale", "_safe_fusing"))  # what a model notes of the last time that a LoRA was fused
_CODE = (FunctionType, property, classmethod, staticmethod)
PROCESSOR = "processor"  # an object that runs in the place of an attention's own code

Plain = object


def settings_of(module: nn.Module, leave_out: frozenset[str]) -> tuple[tuple[str, Plain], ...]:
    """By name, the numbers and words that a module and the objects that it holds have. leave_out: names of others."""
    found = []
    notes = _NOTES | _FUSED if callable(getattr(type(module), "fuse_lora", None)) else _NOTES
    for name, value in vars(module).items():
        if name in _TORCH or name in notes or name in leave_out:
            continue
        if is_plain(value):
            found.append((name, frozen(value)))
        elif holds_settings(name, value):
            inner = vars(value).items()
            found += [(f"{name}.{own}", frozen(one)) for own, one in inner if is_plain(one)]
    return tuple(found)


def is_plain(value: object) -> bool:
    """Whether a value is a number, a word, or made of such."""
    match value:
        case list() | tuple() | set() | frozenset():
            return all(map(is_plain, value))
        case dict():
            return all(map(is_plain, value.values()))
    return isinstance(value, _PLAIN)


def frozen(value: object) -> Plain:
    """A plain value as it is now."""
    match value:
        case list() | tuple():
            return tuple(map(frozen, value))
        case set() | frozenset():
            return frozenset(value)
        case dict():
            return tuple((key, frozen(one)) for key, one in value.items())
    return value


def holds_settings(name: str, value: object) -> bool:
    """Whether an attribute of a module is an object whose own attributes are settings of that module."""
    if isinstance(value, nn.Module | type) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    return name == PROCESSOR or isinstance(value, SimpleNamespace) or dataclasses.is_dataclass(value)


def code_of(kind: type) -> tuple[tuple[str, object], ...]:
    """The functions and settings of a class, and of those that it is made of, by name; not those of `nn.Module`."""
    found = (pair for base in bases_of(kind) for pair in vars(base).items() if _is_code(*pair))
    return tuple((name, frozen(value)) for name, value in found)


def bases_of(kind: type) -> Iterator[type]:
    """The classes whose code a class runs, without `nn.Module`."""
    return (base for base in kind.__mro__ if base is not object and base is not nn.Module)


def _is_code(name: str, value: object) -> bool:
    return isinstance(value, _CODE) or (not name.startswith("__") and is_plain(value))
