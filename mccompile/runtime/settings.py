"""Numbers and words that a forward may read: what counts as one, how it is kept, and those of a class with its code."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from types import FunctionType

import torch
from torch import nn

_PLAIN = (bool, int, float, str, complex, enum.Enum, torch.dtype, torch.device)
_CODE = (FunctionType, property, classmethod, staticmethod)
PROCESSOR = "processor"  # an object that runs in the place of an attention's own code

Plain = object


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


def code_of(kind: type) -> tuple[tuple[str, object], ...]:
    """The functions and settings of a class, and of those that it is made of, by name; not those of `nn.Module`."""
    found = (pair for base in bases_of(kind) for pair in vars(base).items() if _is_code(*pair))
    return tuple((name, frozen(value)) for name, value in found)


def bases_of(kind: type) -> Iterator[type]:
    """The classes whose code a class runs, without `nn.Module`."""
    return (base for base in kind.__mro__ if base is not object and base is not nn.Module)


def _is_code(name: str, value: object) -> bool:
    return isinstance(value, _CODE) or (not name.startswith("__") and is_plain(value))
