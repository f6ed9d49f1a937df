"""What the forward of a model reads outside of itself: functions, classes and numbers, by the names that its code has.

A captured graph holds what these functions did. Whoever puts another one in the place of
`torch.nn.functional.scaled_dot_product_attention`, as the makers of attention kernels advise, changes the model as much
as whoever replaces one of its blocks. The names are found in the code once. Later looks compare identities alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, ModuleType

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from mccompile.runtime.reached import is_data, told
from mccompile.runtime.settings import PROCESSOR, bases_of, is_plain

_FOLLOWED = "diffusers"  # whose functions are looked into, as those of the model's own package are
_NEVER = {"torch", "builtins"}
_EVERYWHERE = ("_global_forward_hooks", "_global_forward_pre_hooks")  # of torch: hooks of all modules
_RUNS = ("forward", "__call__")  # of a module, of a processor
_DEEPEST = 3  # modules within modules that a name leads through: `torch.nn.functional`


class CalledCode:
    """The functions and classes that a model's code names, and the values that are globals of it."""

    def __init__(self, model: nn.Module) -> None:
        self._found: dict[tuple[int, object], tuple[Mapping[object, object], object, str]] = {}
        self._values: dict[tuple[int, str], tuple[Callable[[], object], object, str]] = {}
        self._seen: set[tuple[int, type | None]] = set()
        kinds = {type(part) for module in model.modules() for part in (module, vars(module).get(PROCESSOR))}
        self._packages = {_FOLLOWED, *(kind.__module__.partition(".")[0] for kind in kinds)} - _NEVER
        for kind in kinds:
            self._read_methods(kind, frozenset(_RUNS))
        self._hooks = hooks_of_all()

    def replaced(self) -> str:
        """What is no longer what it was, in words; "" where everything is."""
        for (_, name), (held, value, where) in self._found.items():
            if held.get(name) is not value:
                return f"its code finds another `{where}.{name}`"
        for (_, name), (now, value, where) in self._values.items():
            if told(now()) != value:
                return f"its code finds another `{where}.{name}`"
        return "" if hooks_of_all() == self._hooks else "all modules have other hooks"

    def _read_methods(self, kind: type, names: frozenset[str]) -> None:
        for base in bases_of(kind):
            for name in names & vars(base).keys():
                method = vars(base)[name]
                inner = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
                if isinstance(inner, FunctionType):
                    self._read(inner, kind)

    def _read(self, function: FunctionType, kind: type | None) -> None:
        """Finds what a function names, and looks into what is the model's or diffusers'. kind: whose method it is."""
        function = inspect.unwrap(function)
        if (id(function), kind) in self._seen:
            return
        self._seen.add((id(function), kind))
        names = frozenset(_names(function.__code__))
        self._look(function.__globals__, function.__module__, names, depth=0)
        if self._is_own(function):
            self._keep_values(function, names)
        if kind is not None:
            self._read_methods(kind, names)

    def _look(self, held: Mapping[str, object], where: str, names: frozenset[str], depth: int) -> None:
        """The values that a namespace has for some of the names; those of modules in it too."""
        for name in names & held.keys():
            value = held[name]
            if isinstance(value, ModuleType):
                if depth < _DEEPEST:
                    self._look(vars(value), value.__name__, names, depth + 1)
            elif callable(value) and (id(held), name) not in self._found:
                self._found[id(held), name] = held, value, where  # type: ignore[assignment]
                if isinstance(value, FunctionType) and self._is_own(value):
                    self._read(value, None)
                elif isinstance(value, type) and self._is_own(value) and not issubclass(value, nn.Module):
                    self._keep_settings(value)

    def _keep_values(self, function: FunctionType, names: frozenset[str]) -> None:
        """The numbers, words, tensors and containers among its globals, and among the variables around it."""
        held = function.__globals__
        for name in names & held.keys():
            if not name.startswith("__") and _is_value(held[name]):
                kept = partial(held.get, name), told(held[name]), function.__module__
                self._values.setdefault((id(held), name), kept)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            now, value = partial(_content, cell), _content(cell)
            if _is_value(value):
                self._values.setdefault((id(cell), name), (now, told(value), function.__qualname__))
            elif isinstance(value, FunctionType) and self._is_own(value):
                self._read(value, None)

    def _keep_settings(self, kind: type) -> None:
        """The settings of a class and the functions in its tables: which attention diffusers takes at present."""
        for name, value in vars(kind).items():
            if name.startswith("__"):
                continue
            if is_plain(value):
                self._found[id(kind), name] = vars(kind), value, kind.__qualname__  # type: ignore[assignment]
            elif isinstance(value, dict) and all(isinstance(one, FunctionType) for one in value.values()):
                for key, function in value.items():
                    self._found[id(value), key] = value, function, kind.__qualname__
                    self._read(function, None)

    def _is_own(self, value: FunctionType | type) -> bool:
        return str(value.__module__).partition(".")[0] in self._packages


def hooks_of_all() -> tuple[object, ...]:
    """The hooks that users have put on all modules; torch's own count and track, and change nothing."""
    held = (hook for name in _EVERYWHERE for hook in vars(torch_module)[name].values())
    return tuple(hook for hook in held if not str(getattr(hook, "__module__", "")).startswith("torch."))


def _is_value(value: object) -> bool:
    of_kind = isinstance(value, torch.Tensor | list | tuple | dict | np.ndarray)
    return value is None or of_kind or is_plain(value) or is_data(value)


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
