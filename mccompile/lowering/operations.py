"""What each operation of the language means on tensors, in the order and rounding of arithmetic/operations.py."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import numpy as np
import torch

from mccompile.arithmetic.operations import OPERATIONS, Operator
from mccompile.policy.evaluate import picked as picked_of_number


def power(a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    """Computes a ** b of float32 numbers in float64, and rounds it once. One of the two is a tensor.

    float32 roots and powers of torch differ in the last bit from one CPU library to another, so a plan that was folded
    ahead of time could decide otherwise than the graph.
    """
    return (_wide(a) ** _wide(b)).float()


def quotient(a: torch.Tensor | float, b: torch.Tensor) -> torch.Tensor:
    """Computes a / b, rounded once. PyTorch itself multiplies a number by the reciprocal of a tensor."""
    return torch.full_like(b, a) / b if isinstance(a, int | float) else a / b


def remainder(a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    """Computes what a division leaves, with the divisor's sign, in float64, and rounds it once.

    0 has no sign: NumPy gives it the divisor's and torch the dividend's, and 1 / 0 would tell them apart.
    """
    found = torch.remainder(_wide(a), _wide(b)).float()
    return torch.where(found == 0.0, 0.0, found)


def _wide(x: torch.Tensor | float) -> torch.Tensor:
    return float(np.float32(x)) if isinstance(x, int | float) else x.double()


TENSORS: Mapping[str, Callable[..., torch.Tensor]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": quotient,
    "remainder": remainder,
    "pow": power,
    "max": lambda a, b: torch.where(a > b, a, b),
    "min": lambda a, b: torch.where(a < b, a, b),
    "neg": operator.neg,
    "abs": abs,
    "sqrt": lambda a: power(a, 0.5),
    "exp": lambda a: _wide(a).exp().float(),
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": operator.and_,
    "or": operator.or_,
    "not": operator.invert,
}


def apply(op: Operator, args: list[torch.Tensor]) -> torch.Tensor:
    """Applies one operation. Literals alone give a literal, rounded to float32 as the planner rounds it."""
    if not all(isinstance(arg, int | float) for arg in args):
        return TENSORS[op](*args)
    with np.errstate(all="ignore"):
        found = OPERATIONS[op].value(*(arg if isinstance(arg, bool) else np.float32(arg) for arg in args))
    return found if isinstance(found, bool) else float(found)


def picked(x: torch.Tensor | float, limits: tuple[float, ...], values: tuple[float, ...]) -> torch.Tensor:
    """Returns the entry of `values` at the number of ascending limits that are at most x; no number of no number."""
    if isinstance(x, int | float):
        with np.errstate(all="ignore"):
            return float(picked_of_number(np.float32(x), limits, values))
    nothing = x * 0.0
    found = nothing + values[0]
    for limit, value in zip(limits, values[1:], strict=True):
        found = torch.where(x >= limit, nothing + value, found)
    return found
