"""`int` of a size in a model's own code, while it is exported: the size itself.

Python's own makes a number of it, and the size would be a constant of the graph.
"""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from mccompile.capture.extremes import exchanged


class _AsInt(type):
    """What is an `int` for Python is one here too."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, int)

    def __call__(cls, *values: object) -> object:
        (value, *more) = values or (0,)
        return value if isinstance(value, torch.SymInt) and not more else int(*values)  # type: ignore[call-overload]


class SymbolicInt(int, metaclass=_AsInt):
    """Python's `int`, but for sizes."""


def symbolic_ints(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, the code of the model's classes leaves a symbolic size as it is where it asks for an `int`."""
    return exchanged(model, {"int": SymbolicInt})
