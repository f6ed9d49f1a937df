"""Whether two modules are the same up to their weights: the same code would run on both, and make the same graph.

Compared are the classes, the trees of modules, the shapes of weights, and all attributes. What is not understood is not
alike.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType

import torch
from torch import nn

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, slice, range)
_RUNS = "forward"  # an instance's own forward: during an export, what watches the block


def alike(one: nn.Module, two: nn.Module) -> bool:
    """Whether two blocks differ in their weights alone. An own `forward` of the two modules themselves is passed by."""
    return _Comparison(one)(one, two)


def state_of(module: nn.Module) -> tuple[object, ...]:
    """Which objects are the attributes of a module and of those below it: a forward that sets one changes this."""
    found: list[object] = []
    for path, below in module.named_modules():
        own = ((name, id(value)) for name, value in vars(below).items() if path or name != _RUNS)
        found += [path, *own, *(id(b) for b in below._buffers.values())]
    return tuple(found)


class _Comparison:
    """Compares objects in pairs. An object has one counterpart; a pair that is met again counts as alike."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.partner: dict[int, int] = {}

    def __call__(self, one: object, two: object) -> bool:
        if one is two:
            return True
        if type(one) is not type(two):
            return False
        if isinstance(one, (*_PLAIN, enum.Enum)):
            return one == two
        if id(one) in self.partner:
            return self.partner[id(one)] == id(two)
        self.partner[id(one)] = id(two)
        return self._inside(one, two)

    def _inside(self, one: object, two: object) -> bool:
        match one, two:
            case torch.Tensor(), _:
                return False  # a tensor that is no weight is a constant of the graph
            case nn.Module(), nn.Module():
                return self._modules(one, two)
            case (list() | tuple() | deque()), (list() | tuple() | deque()):
                return len(one) == len(two) and all(map(self, one, two))
            case dict(), dict():
                return self._mappings(one, two)
            case FunctionType(), FunctionType():
                return self._functions(one, two)
            case MethodType(), MethodType():
                return one.__func__ is two.__func__ and self(one.__self__, two.__self__)
            case (set() | frozenset() | type() | BuiltinFunctionType()), _:
                return one == two
        if any(vars(cls).get("__slots__") for cls in type(one).__mro__):
            return False
        try:
            return self(vars(one), vars(two))
        except TypeError:  # no object of Python
            return False

    def _mappings(self, one: Mapping[object, object], two: Mapping[object, object]) -> bool:
        return list(one) == list(two) and all(map(self, one.values(), two.values()))

    def _modules(self, one: nn.Module, two: nn.Module) -> bool:
        if not self._weights(one._parameters, two._parameters) or not self._weights(one._buffers, two._buffers):
            return False
        apart = ["_parameters", "_buffers", *([_RUNS] if one is self.block else [])]
        return self._mappings(*({k: v for k, v in vars(m).items() if k not in apart} for m in (one, two)))

    def _weights(
        self, one: Mapping[str, torch.Tensor | None], two: Mapping[str, torch.Tensor | None]
    ) -> bool:
        if list(one) != list(two):
            return False
        for a, b in zip(one.values(), two.values(), strict=True):
            if a is None or b is None:
                if a is not b:
                    return False
            elif self.partner.setdefault(id(a), id(b)) != id(b) or _kind(a) != _kind(b):
                return False
        return True

    def _functions(self, one: FunctionType, two: FunctionType) -> bool:
        cells = [[c.cell_contents for c in f.__closure__ or ()] for f in (one, two)]
        same = one.__code__ is two.__code__ and one.__globals__ is two.__globals__
        return same and self(cells[0], cells[1]) and self(one.__defaults__, two.__defaults__)


def _kind(weight: torch.Tensor) -> tuple[object, ...]:
    """All that a graph knows of a weight."""
    laid = tuple(weight.shape), tuple(weight.stride()), weight.dtype, weight.device
    return type(weight), weight.requires_grad, *laid
