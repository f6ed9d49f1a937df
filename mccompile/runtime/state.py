"""The state of a model that was captured: what it is made of, and the values of its weights.

What was captured holds for one structure. Values may change, in place or by other tensors of the same kind: the graphs
read them where the model has them. Both are looked at when a request begins. No value is read from a device: types,
identities and version counters tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import fx, nn

from mccompile.capture.own import is_of, is_plain, mark_of, place_of, point_at, weights_read
from mccompile.runtime.called import CalledCode, hooks_of_all
from mccompile.runtime.errors import ModelChanged, ModelTreated
from mccompile.runtime.reached import TORCH, leaves_in, parts_of, settings_of
from mccompile.runtime.settings import PROCESSOR, code_of, frozen
from mccompile.runtime.untouched import Untouched

Entry = tuple[object, ...]
_ADAPTERS = ("scaling", "merged_adapters", "_active_adapter", "_disable_adapters")  # of the layers of peft
_ADAPTED = frozenset(_ADAPTERS)
_SCALES = _ADAPTED - {"merged_adapters"}  # those that are inputs of graphs where adapters.py made them so
SPLIT = "tokens or weights split over processes (`enable_parallelism`)"
ALONE = "compile a model that each process has whole; give the processes prompts of their own (`generate --prompts`)"
_RUNS = ("code of its class", "forward", PROCESSOR)  # what a module runs


def structure_of(model: nn.Module, scaled: Collection[str] = ()) -> dict[str, Entry]:
    """By the name of each module: its type, what it runs, its hooks, its settings and its adapters.

    scaled: names of modules whose adapters may be scaled, switched on and off (adapters.py).
    """
    code: dict[type, object] = {}
    parts = parts_of(model)
    return {name: _entry(module, code, parts, name in scaled) for name, module in model.named_modules()}


def _entry(module: nn.Module, code: dict[type, object], parts: Collection[int], scaled: bool = False) -> Entry:
    """code: that of each class, as it is found. parts: the ids of the model's."""
    own, kind = vars(module), type(module)
    processor = own.get(PROCESSOR)
    for each in (kind, type(processor)):
        if each not in code:
            code[each] = code_of(each)
    hooks = (*module._forward_pre_hooks, *module._forward_hooks)
    runs = ((code[kind], code[type(processor)]), _forward_of(module), processor)
    adapters = (None if scaled and k in _SCALES else frozen(own.get(k)) for k in _ADAPTERS)
    return kind, hooks, *runs, settings_of(module, _ADAPTED, parts), *adapters


def _forward_of(module: nn.Module) -> object:
    """The forward of an instance; None where it is that of its class, as hooks leave it when they are removed."""
    forward = vars(module).get("forward")
    of_class = getattr(forward, "__func__", None) is type(module).forward
    return None if of_class and getattr(forward, "__self__", None) is module else forward


def values_of(model: nn.Module) -> dict[str, Entry]:
    """By the name of each parameter, buffer and other tensor: the tensor, its version and where its values lie."""
    return {name: (tensor, *mark_of(tensor)) for name, tensor in _tensors(model)}


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    parts = parts_of(model)
    for path, module in model.named_modules():
        at = f"{path}." if path else ""
        for name, value in vars(module).items():
            found = leaves_in(value, f"{at}{name}", parts) if name not in TORCH else ()
            yield from ((at_leaf, leaf) for at_leaf, leaf in found if isinstance(leaf, torch.Tensor))


class ModelState:
    """What a model was when it was captured, and how the captured graphs follow where it has its values now."""

    def __init__(self, model: nn.Module, graph: fx.GraphModule, scaled: Collection[str] = ()) -> None:
        """graph: the captured one, which has tensors of its own for the weights. scaled: see `structure_of`.

        Raises ModelChanged (MC0612) where it is of another model with other values, or cannot read those of now.
        """
        self._model = model
        self._scaled = scaled
        self._structure = structure_of(model, scaled)
        self._values = values_of(model)
        self._read = {name: read for name, read in weights_read(graph).items() if name in self._values}
        for name, read in self._read.items():
            tensor = self._values[name][0]
            other = place_of(read) != place_of(tensor) and not is_of(graph, model)
            if other and (_unlike(read, tensor) or not torch.equal(read, tensor)):
                raise ModelChanged(type(model).__name__, f"weight `{name}` is not that of the captured model")
        self._tied = [names for names in _tied(self._values) if self._read.keys() & names]
        self._follow(self._values)
        self._untouched = Untouched(model)
        self._called = CalledCode(model)

    def changed(self) -> bool:
        """Whether the weights have other values than at the last look. The graphs then read the values of now.

        Raises ModelChanged (MC0612) where the model is made of other parts, or its weights are of another kind.
        """
        other = self._called.replaced()
        still = not other and self._untouched.still()
        if still and all(place_of(t) == self._values[name][2] for name, t in self._read.items()):
            return False
        difference = _difference(self._structure, structure_of(self._model, self._scaled)) or other
        if difference and _split(self._model):
            difference = f"it has {SPLIT}"
        if difference:
            raise ModelChanged(type(self._model).__name__, difference)
        now = values_of(self._model)
        followed = self._follow(now)
        same, self._values, self._untouched = _same(self._values, now), now, Untouched(self._model)
        return followed or not same

    def _follow(self, now: dict[str, Entry]) -> bool:
        """Points the tensors of the graphs at the values of now, all of them or none. Says whether any is elsewhere."""
        for name, read in self._read.items():
            if name not in now:
                raise ModelChanged(type(self._model).__name__, f"weight `{name}` is gone")
            unlike = _unlike(read, now[name][0])
            if unlike:
                raise ModelChanged(type(self._model).__name__, f"weight `{name}` {unlike}")
        for names in self._tied:
            if len({now[name][2] if name in now else None for name in names}) > 1:
                why = f"weights {', '.join(f'`{name}`' for name in names)} were one tensor, and are no longer"
                raise ModelChanged(type(self._model).__name__, why)
        elsewhere = [name for name, read in self._read.items() if place_of(read) != now[name][2]]
        for name in elsewhere:
            point_at(self._read[name], now[name][0])
        return bool(elsewhere)


def _unlike(read: torch.Tensor, tensor: torch.Tensor) -> str:
    """Why a graph that was captured with one tensor cannot read another in its place; "" where it can."""
    if read is tensor:
        return ""
    if not is_plain(read) or not is_plain(tensor):
        return f"is a {type(tensor).__name__}"
    facts = (("shape", read.shape, tensor.shape), ("dtype", read.dtype, tensor.dtype),
             ("device", read.device, tensor.device), ("order in memory", read.stride(), tensor.stride()))  # fmt: skip
    return next((f"has another {what}: {now}" for what, then, now in facts if then != now), "")


def _tied(values: dict[str, Entry]) -> list[list[str]]:
    """The names of each tensor that has several."""
    by_tensor: dict[int, list[str]] = {}
    for name, (tensor, *_) in values.items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]


def _same(before: dict[str, Entry], now: dict[str, Entry]) -> bool:
    return before.keys() == now.keys() and all(
        a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before.values(), now.values(), strict=True)
    )


def _difference(before: dict[str, Entry], now: dict[str, Entry]) -> str:
    """The gravest difference, and the first module that has it, in words; "" where there is none."""
    gone, come = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
    if gone or come:
        return f"module `{gone[0]}` is gone" if gone else f"module `{come[0]}` was added"
    words = ("type", "hooks", *_RUNS, "settings", *(f"adapters (`{name}`)" for name in _ADAPTERS))
    for place, word in enumerate(words):
        for name, entry in before.items():
            one, other = entry[place], now[name][place]
            if one is not other and one != other:
                which = f" ({_which(one, other)})" if word == "settings" else ""
                return f"{f'module `{name}`' if name else 'the model'} has other {word}{which}"
    return ""


def _which(one: object, other: object) -> str:
    """The names of the settings that differ."""
    assert isinstance(one, tuple)
    assert isinstance(other, tuple)
    names = dict.fromkeys(name for name, value in (*one, *other) if ((name, value) in one) != ((name, value) in other))
    return ", ".join(f"`{name}`" for name in names)


def built_alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models are of the same parts with the same settings: they differ in values at most."""
    return _built(one) == _built(other)


def _built(model: nn.Module) -> list[object]:
    """What two models that are built alike have in common."""
    found: list[object] = [dict(getattr(model, "config", {}))]
    parts = parts_of(model)
    for name, module in model.named_modules():
        kind, hooks, _, forward, processor, settings, *adapters = _entry(module, {}, parts)
        found.append((name, kind, settings, hooks, forward, type(processor), adapters))
    return found + [(name, type(t), t.shape, t.dtype, t.stride(), t.device) for name, t in _tensors(model)]


def _split(model: nn.Module) -> bool:
    """Whether diffusers has split the model's tokens or weights over processes."""
    return getattr(model, "_parallel_config", None) is not None


def check_untreated(model: nn.Module) -> None:
    """Raises ModelTreated (MC0613) where hooks, or a forward of an instance, would be lost in a captured graph.

    The same holds for a model that diffusers has split over processes.
    """
    if _split(model):
        raise ModelTreated(type(model).__name__, "it", SPLIT, ALONE)
    if hooks_of_all():
        raise ModelTreated(type(model).__name__, "every module", "hooks")
    for name, module in model.named_modules():
        treated = "a forward of its own" if _forward_of(module) is not None else ""
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
