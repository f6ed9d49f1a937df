"""`max` and `min` of sizes in a model's own code, as operations of the graph while it is exported.

Python's own take a branch: `max(height, width)` of a landscape would be its width in the graph, and a portrait would be
refused. The names are put into the modules that the model's classes come from, and taken away again.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

import torch
from torch import nn

_EXTREMES = frozenset(("max", "min"))
_KEEP = ("torch", "builtins")  # these rely on the branches of Python's own


def compares(guard: str) -> bool:
    """Whether a guard of export says which of two sizes of a call is the larger; bounds of an extreme say nothing."""
    return ("<" in guard or ">" in guard) and guard.count("L[") > 1 and not ("max(" in guard or "min(" in guard)


def takes_extremes(model: nn.Module) -> bool:
    """Whether a method of the model's classes may take the larger or smaller of something."""
    kinds = {kind for part in model.modules() for kind in type(part).__mro__ if not _is_torch(kind.__module__)}
    methods = (value for kind in kinds for value in vars(kind).values())
    return any(_EXTREMES & set(inspect.unwrap(m).__code__.co_names) for m in methods if inspect.isfunction(m))


@contextlib.contextmanager
def symbolic_extremes(model: nn.Module) -> Iterator[None]:
    """Inside, the code of the model's classes finds the larger or smaller of sizes without a branch."""
    names = {"max": _extreme(builtins.max, torch.sym_max), "min": _extreme(builtins.min, torch.sym_min)}
    with exchanged(model, names):
        yield


@contextlib.contextmanager
def exchanged(model: nn.Module, names: Mapping[str, Callable[..., object]]) -> Iterator[None]:
    """Inside, the code of the model's classes finds these functions in place of Python's own."""
    added = [(module, name) for module in _modules(model) for name in names if name not in vars(module)]
    for module, name in added:
        vars(module)[name] = names[name]
    try:
        yield
    finally:
        for module, name in added:
            del vars(module)[name]


def _modules(model: nn.Module) -> list[ModuleType]:
    found = {kind.__module__ for part in model.modules() for kind in type(part).__mro__}
    return [sys.modules[name] for name in sorted(found) if name in sys.modules and not _is_torch(name)]


def _is_torch(name: str) -> bool:
    return name.partition(".")[0] in _KEEP


def _extreme(plain: Callable[..., object], symbolic: Callable[..., object]) -> Callable[..., object]:
    """`plain`, but for several numbers of which one is symbolic."""

    def extreme(*values: object, **options: object) -> object:
        if len(values) > 1 and not options and any(isinstance(v, torch.SymInt) for v in values):
            return functools.reduce(symbolic, values)
        return plain(*values, **options)

    return extreme
