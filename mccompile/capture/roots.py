"""Square roots of numbers that are computed from sizes, by `math.sqrt` and `numpy.sqrt`, while a model is exported.

Both take Python numbers, and the size would be a constant of the graph, or the export would fail.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import torch


@contextlib.contextmanager
def symbolic_roots() -> Iterator[None]:
    """Inside, the square root of a symbolic number is an operation of the graph."""
    libraries: tuple[ModuleType, ...] = (math, np)
    plain = [library.sqrt for library in libraries]
    for library, own in zip(libraries, plain, strict=True):
        library.sqrt = _root(own)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for library, own in zip(libraries, plain, strict=True):
            library.sqrt = own  # type: ignore[attr-defined]


def _root(plain: Callable[..., object]) -> Callable[..., object]:
    def sqrt(value: object, *more: object, **options: object) -> object:
        if isinstance(value, torch.SymInt | torch.SymFloat) and not more and not options:
            return torch.sym_sqrt(value)
        return plain(value, *more, **options)

    return sqrt
