"""Lists of one number, as long as a size of the call (`[0] * batch`), while a model is exported.

Python would make a list of the recorded length, and the size would be a constant of the graph. Inside, such a product
is a promise, of which `torch.tensor` makes a tensor of that size. Nothing else can be done with a promise: whatever
reads it otherwise fails, and the export with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RepeatedNumber:
    """A list of one number, and its length."""

    number: bool | int | float
    length: torch.SymInt


@contextlib.contextmanager
def symbolic_lists() -> Iterator[None]:
    """Inside, `[number] * size` of a symbolic size is a promise, and `torch.tensor` of it a tensor of that size."""
    product, made = vars(torch.SymInt)["__rmul__"], torch.tensor

    def __rmul__(self: torch.SymInt, other: object) -> object:
        match other:
            case [bool() | int() | float() as number]:
                return RepeatedNumber(number, self)
        return product(self, other)

    def tensor(data: object, **options: object) -> torch.Tensor:
        if isinstance(data, RepeatedNumber):
            return torch.full((data.length,), data.number, **options)
        return made(data, **options)

    torch.SymInt.__rmul__ = __rmul__
    torch.tensor = tensor
    try:
        yield
    finally:
        torch.SymInt.__rmul__ = product
        torch.tensor = made
