"""The state of a model that was captured: what it is made of, and the values of its weights.

What was captured holds for one structure. Values may change in place, for the graphs read the weights where they are.
Both are looked at when a request begins. No value is read from a device: types, identities and version counters tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from mccompile.runtime.errors import ModelChanged, ModelTreated

Entry = tuple[object, ...]
_SCALAR = (bool, int, float, str)
_ADAPTERS = ("scaling", "merged_adapters", "_active_adapter", "_disable_adapters")  # of the layers of peft
_RUNS = ("forward", "processor")  # what a module runs in place of its class's own


def structure_of(model: nn.Module) -> dict[str, Entry]:
    """By the name of each module: its type, what it runs, its hooks, its settings and its adapters."""
    return {name: _entry(module) for name, module in model.named_modules()}


def _entry(module: nn.Module) -> Entry:
    own = vars(module)
    settings = tuple((k, v) for k, v in own.items() if isinstance(v, _SCALAR) and not k.startswith("_"))
    hooks = (*module._forward_pre_hooks, *module._forward_hooks)
    return type(module), settings, hooks, *(own.get(k) for k in _RUNS), *(_frozen(own.get(k)) for k in _ADAPTERS)


def _frozen(value: object) -> object:
    match value:
        case dict():
            return tuple(value.items())
        case list():
            return tuple(value)
    return value


def values_of(model: nn.Module) -> dict[str, Entry]:
    """By the name of each parameter and buffer: the tensor, its version and where its values lie."""
    return {
        name: (tensor, None if tensor.is_inference() else tensor._version, _place(tensor))
        for name, tensor in _tensors(model)
    }


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _place(tensor: torch.Tensor) -> int | None:
    plain = type(tensor) in (torch.Tensor, nn.Parameter)
    return tensor.data_ptr() if plain else None  # tensors that stand for others have no place of their own


class ModelState:
    """What a model was when it was captured. graphs: the module that owns the tensors that the captured graphs read."""

    def __init__(self, model: nn.Module, graphs: nn.Module) -> None:
        """Raises ModelChanged (MC0612) where the graphs read other values than the model has."""
        self._model = model
        self._read = dict(_tensors(graphs))
        self._structure = structure_of(model)
        self._values = values_of(model)
        for name, read, tensor in self._astray():
            if read.shape != tensor.shape or not torch.equal(read, tensor):
                raise ModelChanged(type(model).__name__, f"weight `{name}` is not that of the captured model")

    def changed(self) -> bool:
        """Whether the weights were changed in place since the last look. The graphs read them where they are.

        Raises ModelChanged (MC0612) where the model is made of other parts, or has other tensors as its weights.
        """
        kind = type(self._model).__name__
        difference = _difference(self._structure, structure_of(self._model))
        if difference:
            raise ModelChanged(kind, difference)
        now = values_of(self._model)
        if _same(self._values, now):
            return False
        elsewhere = next((name for name, _, _ in self._astray()), None) or _moved(self._values, now)
        if elsewhere is not None:
            raise ModelChanged(kind, f"weight `{elsewhere}` is another tensor, or lies in other memory")
        self._values = now
        return True

    def _astray(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Names of weights that the graphs read elsewhere than the model has them, with both tensors."""
        for name, tensor in _tensors(self._model):
            read = self._read.get(name)
            if read is not None and read is not tensor and _place(read) != _place(tensor):
                yield name, read, tensor


def _moved(before: dict[str, Entry], now: dict[str, Entry]) -> str | None:
    """The first weight that is there at one look only, or whose memory is another one."""
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now or before[name][2] != now[name][2]:
            return name
    return None


def _same(before: dict[str, Entry], now: dict[str, Entry]) -> bool:
    return before.keys() == now.keys() and all(
        a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before.values(), now.values(), strict=True)
    )


def _difference(before: dict[str, Entry], now: dict[str, Entry]) -> str:
    """The first module that differs, in words; "" where none does."""
    gone, come = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
    if gone or come:
        return f"module `{gone[0]}` is gone" if gone else f"module `{come[0]}` was added"
    words = ("type", "settings", "hooks", *_RUNS, *(f"adapters (`{name}`)" for name in _ADAPTERS))
    for name, entry in before.items():
        for word, one, other in zip(words, entry, now[name], strict=True):
            if one is not other and one != other:
                return f"{f'module `{name}`' if name else 'the model'} has other {word}"
    return ""


def check_untreated(model: nn.Module) -> None:
    """Raises ModelTreated (MC0613) where hooks, or a forward of an instance, would be lost in a captured graph."""
    for name, module in model.named_modules():
        treated = "a forward of its own" if "forward" in vars(module) else ""
        if module._forward_pre_hooks or module._forward_hooks:
            treated = "hooks"
        if treated:
            raise ModelTreated(type(model).__name__, f"module `{name}`" if name else "it", treated)


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, modules that `torch.compile` has treated in place run as they are."""
    compiled = [(m, vars(m)["_compiled_call_impl"]) for m in model.modules() if "_compiled_call_impl" in vars(m)]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
