"""Writes frozen dataclasses as JSON values, and reads them by their type hints. Reading executes nothing."""

from __future__ import annotations

import dataclasses
import types
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from mccompile.backend.graph_text import GraphJson

T = TypeVar("T")


def write_record(value: object) -> GraphJson:
    """A dataclass of numbers, strings, tuples, sets, dtypes and further dataclasses. Raises TypeError for others."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case tuple() | list():
            return [write_record(v) for v in value]
        case frozenset():
            return [write_record(v) for v in sorted(value)]
        case torch.dtype():
            return str(value).removeprefix("torch.")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: write_record(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def read_record(kind: type[T], value: GraphJson) -> T:
    """A `kind` from what `write_record` wrote. Raises ValueError where it does not fit."""
    return read_any(kind, value)  # type: ignore[return-value]


def read_any(kind: object, value: GraphJson) -> object:
    """As `read_record`, for a type that is known at run time only."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        each = inner[:1] * len(value) if len(inner) == 2 and inner[1] is ... else inner
        if len(each) == len(value):
            return tuple(read_any(k, v) for k, v in zip(each, value, strict=True))
    elif origin is frozenset and isinstance(value, list):
        return frozenset(read_any(inner[0], v) for v in value)
    elif origin is Literal and value in inner:
        return value
    elif origin in (Union, types.UnionType):
        return _first(inner, value)
    elif kind is torch.dtype and isinstance(value, str):
        found = getattr(torch, value, None)
        if type(found) is torch.dtype:
            return found
    elif kind in (bool, int, float, str, types.NoneType) and type(value) is kind:
        return value
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        if set(value) == set(hints):
            return kind(**{name: read_any(hints[name], v) for name, v in value.items()})
    raise ValueError(f"{value!r:.200} is no {kind}")


def _first(kinds: tuple[object, ...], value: GraphJson) -> object:
    for kind in kinds:
        try:
            return read_any(kind, value)
        except ValueError:
            continue
    raise ValueError(f"{value!r:.200} is none of {kinds}")
