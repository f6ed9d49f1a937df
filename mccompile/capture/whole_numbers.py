"""`int` of a size, `len` of a tensor and `set` of sizes in a model's own code, while it is exported.

before: int(size), len(tensor), len(set(sizes)) > 1
after:  the size itself, the first size of the tensor, and the sizes that differ: a number of them is a guard

Python's own make a number of a size, and it would be a constant of the graph, or they refuse it. A whole number that
was rounded from a fraction of sizes is left to Python: a graph that rounds otherwise would be wrong at some sizes only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
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


def _length(value: Any) -> object:
    """Python's `len`, but for tensors."""
    return value.size(0) if isinstance(value, torch.Tensor) and value.dim() else len(value)


class _AsSet(type):
    """What is a `set` for Python is one here too."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, set)

    def __call__(cls, *values: Iterable[object]) -> object:
        found: list[object] = list(*values)
        if not any(isinstance(value, torch.SymInt) for value in found):
            return set(found)
        return tuple(value for place, value in enumerate(found) if all(value != other for other in found[:place]))


class SymbolicSet(set[object], metaclass=_AsSet):
    """Python's `set`, but for sizes: a tuple of those that differ, as no size can be looked up."""


def symbolic_ints(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, the code of the model's classes leaves a symbolic size as it is: in `int`, `len` and `set`."""
    return exchanged(model, {"int": SymbolicInt, "len": _length, "set": SymbolicSet})
