"""`int` of a size in a model's own code, while it is exported: the size itself.

Python's own makes a number of it, and the size would be a constant of the graph. A whole number that was rounded from a
fraction of sizes is left to Python: a graph that rounds otherwise would be wrong at some sizes only.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from mccompile.capture.extremes import exchanged

_EXACT = (FloorDiv, Mod, PythonMod)  # of whole numbers, beside sums and products


class _AsInt(type):
    """What is an `int` for Python is one here too."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, int)

    def __call__(cls, *values: object) -> object:
        (value, *more) = values or (0,)
        keeps = isinstance(value, torch.SymInt) and not more and _is_whole(value)
        return value if keeps else int(*values)  # type: ignore[call-overload]


class SymbolicInt(int, metaclass=_AsInt):
    """Python's `int`, but for sizes."""


def _is_whole(value: torch.SymInt) -> bool:
    """Whether a number is made of sizes by sums, products and whole quotients alone."""
    return _is_exact(value.node.expr)


def _is_exact(expression: Any) -> bool:
    """expression: of sympy, as torch writes sizes."""
    atom, made = expression.is_Symbol or expression.is_Integer, expression.is_Add or expression.is_Mul
    return bool(atom or made or isinstance(expression, _EXACT)) and all(map(_is_exact, expression.args))


def symbolic_ints(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, the code of the model's classes leaves a symbolic size as it is where it asks for an `int`."""
    return exchanged(model, {"int": SymbolicInt})
