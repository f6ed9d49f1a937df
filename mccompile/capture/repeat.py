"""Exports a block that repeats an earlier one as one operator, so that each sort of block is traced once.

before: a model whose lists hold blocks that differ in their weights alone;  after: while it is exported, the first
block of a sort runs its own code, and one like it, called with values of the same sort, gives empty tensors of the
right sizes. unfold.py puts the nodes of the first in the place of the operator
refuses when: a block differs from all before it in any attribute, in any number that it is given, or in the sizes, the
layout or the sharing of its tensors; when it has hooks, sets attributes, or returns a dtype that it was not given

The code around and between the blocks is traced as it is, at full depth. While it is, blocks that are bound to repeat
an earlier one have no weights: an export takes time for every weight, whether it is read or not.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.alike import alike, state_of
from mccompile.capture.stacks import CHILD
from mccompile.capture.watched import Act, instead

LIBRARY = torch.library.Library("mccompile", "FRAGMENT")
LIBRARY.define("repeat(Tensor[] given, str path, str first, int[] places, SymInt[] laid) -> Tensor[]")
LIBRARY.define("ended(Tensor[] given, Tensor[] made, str path) -> Tensor[]")


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_empty_strided(tensor.size(), tensor.stride())


def _repeat(
    given: Sequence[torch.Tensor], path: str, first: str, places: Sequence[int], laid: Sequence[int | torch.SymInt]
) -> list[torch.Tensor]:
    """Empty tensors: what the block at `path` returns, as `first` does.

    places: of a given tensor of the same dtype and device for each. laid: of each its sizes, then its strides, behind
    the number of its axes.
    """
    made, at = [], 0
    for place in places:
        axes = int(laid[at])
        sizes, strides = laid[at + 1 : at + 1 + axes], laid[at + 1 + axes : at + 1 + 2 * axes]
        made.append(given[place].new_empty_strided(sizes, strides))
        at += 1 + 2 * axes
    return made


def _ended(given: Sequence[torch.Tensor], made: Sequence[torch.Tensor], path: str) -> list[torch.Tensor]:
    """Marks that the block at `path` was given `given` and made `made`; gives tensors like those made."""
    return [_like(tensor) for tensor in made]


torch.library.register_fake("mccompile::repeat", _repeat, lib=LIBRARY)
torch.library.register_fake("mccompile::ended", _ended, lib=LIBRARY)
REPEAT, ENDED = torch.ops.mccompile.repeat.default, torch.ops.mccompile.ended.default

_SHOWN = 2  # blocks of a sort that keep their weights: the first is often given another layout than the others
Sort = tuple[object, ...]  # all that a graph knows of a value


@dataclass(frozen=True, slots=True)
class _Block:
    """A block that ran its own code. places, laid: of the tensors that it returns, as `_repeat` takes them."""

    path: str
    module: nn.Module
    state: tuple[object, ...]
    asked: Sort
    tensors: tuple[bool, ...]  # which of the leaves that it returns; the others are None
    out_spec: pytree.TreeSpec
    places: tuple[int, ...]
    laid: tuple[int | torch.SymInt, ...]


class WeightsMissed(Exception):
    """A block whose weights were taken away is asked for more than an earlier one gave."""


@contextlib.contextmanager
def repeats(model: nn.Module, bare: bool = False) -> Iterator[dict[str, str]]:
    """Inside, an export of the model has one operator for each block that repeats an earlier one.

    bare: whether the third block of a sort and those behind it have no weights inside; then the export may raise
    WeightsMissed, or whatever the model's code does without them.
    Gives, after the export, for the path of each of these blocks the path of the earlier one.
    """
    found: dict[str, str] = {}
    met: dict[str, list[_Block]] = defaultdict(list)
    listed = list(_listed(model))
    taken = _bound_to_repeat(model, listed) if bare else {}
    acts = {m: _act(path, m, met[path.rpartition(".")[0]], found, taken.get(m)) for path, m in listed}
    with instead(acts):
        for module in taken:
            _strip(module)
        try:
            yield found
        finally:
            for module, whole in taken.items():
                vars(module).update(whole.held)


_HELD = "_parameters", "_buffers", "_modules"


def _strip(module: nn.Module) -> None:
    """Takes all that a module holds away from it."""
    vars(module).update({name: {} for name in _HELD})


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a block holds, and which earlier blocks it is alike; state: with all that it holds."""

    held: dict[str, object]
    state: tuple[object, ...]
    like: frozenset[nn.Module]

    def unchanged(self, module: nn.Module) -> bool:
        if any(vars(module)[name] for name in _HELD):
            return False  # it was given something meanwhile
        vars(module).update(self.held)
        same = state_of(module) == self.state
        _strip(module)
        return same


def _bound_to_repeat(model: nn.Module, listed: Sequence[tuple[str, nn.Module]]) -> dict[nn.Module, _Taken]:
    """The third block of those that are alike in a list, and all behind it; none that shares a weight with others."""
    found: dict[nn.Module, _Taken] = {}
    names = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    sorts: dict[str, list[list[nn.Module]]] = defaultdict(list)
    for path, module in listed:
        known = sorts[path.rpartition(".")[0]]
        same = next((sort for sort in known if alike(sort[0], module)), None)
        if same is None:
            known.append([module])
        elif len(same) < _SHOWN:
            same.append(module)
        elif all(names[id(weight)] == 1 for weight in module.parameters()):
            held = {name: vars(module)[name] for name in _HELD}
            found[module] = _Taken(held, state_of(module), frozenset(same))
    return found


def _listed(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of lists of three or more of a class.

    A module below the list that stands in two places is left alone, with all that hold it.
    """
    lists: dict[str, list[tuple[str, nn.Module]]] = defaultdict(list)
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for path, module in model.named_modules():
        match = CHILD.match(path)
        if match and next(module.children(), None) is not None:
            lists[match[1]].append((path, module))
    for children in lists.values():
        by_class = Counter(type(module) for _, module in children)
        for path, module in children:
            shares = any(places[id(below)] > 1 for below in module.modules())  # then export names it by another path
            if by_class[type(module)] > 2 and not _hooked(module) and not shares:
                yield path, module


def _hooked(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks))


def _act(path: str, module: nn.Module, met: list[_Block], found: dict[str, str], taken: _Taken | None) -> Act:
    own = module.forward

    def repeated(block: _Block, asked: Sort) -> bool:
        if block.asked != asked or state_of(block.module) != block.state:
            return False
        if taken is None:
            return alike(block.module, module)
        return block.module in taken.like and taken.unchanged(module)

    def run(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        flat, spec = pytree.tree_flatten((args, kwargs))
        given = [*_spread(flat)]
        asked = (spec, _context(), *_sorts(given))
        tensors = [x for x in given if isinstance(x, torch.Tensor)]
        for block in met:
            if repeated(block, asked):
                found[path] = block.path
                made = iter(REPEAT(tensors, path, block.path, block.places, block.laid))
                return pytree.tree_unflatten([next(made) if t else None for t in block.tensors], block.out_spec)
        if taken is not None:
            raise WeightsMissed(f"`{path}` is given other values than the blocks before it")
        before = state_of(module)
        results, out_spec = pytree.tree_flatten(own(*args, **kwargs))
        places = _places(tensors, results)
        left, left_spec = pytree.tree_flatten((args, kwargs))
        unchanged = left_spec == spec and list(map(id, _spread(left))) == list(map(id, given))
        if places is None or state_of(module) != before or not unchanged:
            return pytree.tree_unflatten(results, out_spec)
        returned = tuple(isinstance(x, torch.Tensor) for x in results)
        ended = [x for x in results if isinstance(x, torch.Tensor)]
        laid = tuple(size for x in ended for size in (x.dim(), *x.size(), *x.stride()))
        met.append(_Block(path, module, before, asked, returned, out_spec, places, laid))
        made = iter(ENDED(tensors, ended, path))
        return pytree.tree_unflatten([next(made) if t else None for t in returned], out_spec)

    return run


def _context() -> Sort:
    """Of the modes that change what operators do."""
    kinds = "cpu", "cuda"
    return torch.is_grad_enabled(), *((torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds)


def _number(value: object) -> object:
    return value.node.expr if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else value


def _sort(tensor: torch.Tensor) -> Sort:
    laid = (tuple(map(_number, x)) for x in (tensor.size(), tensor.stride(), (tensor.storage_offset(),)))
    return tensor.dtype, tensor.device, tensor.requires_grad, *laid


def _spread(values: Sequence[object]) -> Iterator[object]:
    """The values, and behind each dataclass what its fields hold, such as the masks that all blocks share."""
    for value in values:
        yield value
        if is_dataclass(value) and not isinstance(value, type):
            held = [getattr(value, item.name) for item in fields(value)]
            yield from _spread(pytree.tree_leaves(held))


def _sorts(values: Sequence[object]) -> Iterator[Sort]:
    """Of each value its sort, and the first place that has the same object."""
    first: dict[int, int] = {}
    for i, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            yield first.setdefault(id(value), i), type(value), _sort(value)
        elif isinstance(value, int | float | str | torch.SymInt | torch.SymFloat | torch.SymBool) or value is None:
            yield type(value), _number(value)
        else:
            yield type(value), id(value)


def _places(given: Sequence[torch.Tensor], results: Sequence[object]) -> tuple[int, ...] | None:
    """For each tensor among the results the place of a given one that can make its like; None where one has none."""
    made = [r for r in results if isinstance(r, torch.Tensor)]
    others = [r for r in results if not isinstance(r, torch.Tensor)]
    found = [next((i for i, t in enumerate(given) if _fits(r, t)), None) for r in made]
    places = tuple(place for place in found if place is not None)
    return places if made and len(places) == len(made) and all(r is None for r in others) else None


def _fits(made: torch.Tensor, given: torch.Tensor) -> bool:
    """An empty tensor like `made` is one that `given` can make."""
    same = made.dtype == given.dtype and made.device == given.device
    return same and made.requires_grad == given.requires_grad and made.storage_offset() == 0
