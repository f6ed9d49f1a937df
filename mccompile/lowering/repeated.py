"""Computes tensors whose slices repeat, such as a mask of tokens that depends on frames, without making them whole.

A graph that repeats, reshapes and compares is run on values that hold each slice once. A mask of 51,000 x 51,000
tokens in 25 frames then takes 25 x 25 values and two lists of 51,000 places. An operator that is not known here is run
on whole tensors, as far as these are small.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, TypeAlias

import torch
from torch import fx

aten = torch.ops.aten
LARGEST = 2**24  # values of a tensor that is made whole


class TooLarge(Exception):
    """A tensor would have to be made whole, and has more than LARGEST values."""


class _Unknown(Exception):
    """An operator does not keep slices as they are, or not in this case."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """A tensor. once: each different slice once, along every axis. places: for each axis which one stands where."""

    once: torch.Tensor
    places: tuple[torch.Tensor, ...]

    @staticmethod
    def of(value: torch.Tensor) -> Repeated:
        """A tensor as it is; slices that are equal are not looked for."""
        return Repeated(value, tuple(torch.arange(n, device=value.device) for n in value.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(p.numel() for p in self.places)

    def whole(self, axes: Sequence[int] | None = None) -> torch.Tensor:
        """The tensor itself, or with only some of its axes whole. Raises TooLarge."""
        chosen = range(len(self.places)) if axes is None else axes
        sizes = [p.numel() if i in chosen else self.once.size(i) for i, p in enumerate(self.places)]
        if prod(sizes) > LARGEST:
            raise TooLarge
        return reduce(lambda t, i: t.index_select(i, self.places[i]), chosen, self.once)


Computed: TypeAlias = Any  # Repeated, a tensor, a number, or lists of them


def run_repeated(module: fx.GraphModule, arguments: Sequence[object]) -> list[Computed]:
    """The outputs of a graph that depends on sizes alone; those that were made by repeating are Repeated.

    All of it is computed on the host, whatever devices the graph names: a GPU would be waited for. Raises TooLarge
    where a value is elsewhere, and for a graph that writes to tensors: who else holds them is not followed.
    """
    if any(_writes(node.target) for node in module.graph.nodes):
        raise TooLarge
    env: dict[fx.Node, Computed] = {}
    given = iter(arguments)
    for node in module.graph.nodes:
        match node.op:
            case "placeholder":
                env[node] = next(given)
            case "get_attr":
                env[node] = reduce(getattr, str(node.target).split("."), module)
            case "call_function":
                args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), _host)
                args, kwargs = fx.node.map_arg((args, kwargs), lambda n: env[n])
                env[node] = _call(node.target, args, kwargs)
            case "output":
                return list(fx.node.map_arg(node.args[0], lambda n: env[n]))
            case other:
                raise AssertionError(f"a prelude graph has no {other}")
    raise AssertionError("a graph has an output")


def _host(value: Computed) -> Computed:
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _writes(target: object) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _call(target: Any, args: tuple[Computed, ...], kwargs: Mapping[str, Computed]) -> Computed:
    tensors = [a for a in args if isinstance(a, torch.Tensor | Repeated)]
    if target is not aten.sym_size.int and any(isinstance(a, torch.Tensor) and a.device.type != "cpu" for a in tensors):
        raise TooLarge
    known = _KNOWN.get(target)
    pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    empty = any(0 in a.shape for a in tensors)  # of nothing no slice is held
    if tensors and not empty and not kwargs and (known is not None or pointwise):
        try:
            if known is not None:
                return known(_repeated(args[0]), *args[1:])
            return _pointwise(target, args)
        except _Unknown:
            pass
    return target(*map(_plain, args), **{n: _plain(v) for n, v in kwargs.items()})


def _repeated(value: Computed) -> Repeated:
    return value if isinstance(value, Repeated) else Repeated.of(value)


def _plain(value: Computed) -> Computed:
    match value:
        case Repeated():
            return value.whole()
        case list() | tuple():
            return type(value)(map(_plain, value))
    return value


# ---- operators that move and repeat
def _unsqueeze(value: Repeated, axis: int) -> Repeated:
    axis %= len(value.places) + 1
    first = torch.zeros(1, dtype=torch.int64, device=value.once.device)
    return Repeated(value.once.unsqueeze(axis), (*value.places[:axis], first, *value.places[axis:]))


def _permute(value: Repeated, order: Sequence[int]) -> Repeated:
    return Repeated(value.once.permute(*order), tuple(value.places[a] for a in order))


def _transpose(value: Repeated, first: int, second: int) -> Repeated:
    order = list(range(len(value.places)))
    order[first], order[second] = order[second], order[first]
    return _permute(value, order)


def _of_rank(value: Repeated, rank: int) -> Repeated:
    while len(value.places) < rank:
        value = _unsqueeze(value, 0)
    return value


def _repeat(value: Repeated, factors: Sequence[int]) -> Repeated:
    value = _of_rank(value, len(factors))
    return Repeated(value.once, tuple(p.repeat(f) for p, f in zip(value.places, factors, strict=True)))


def _expand(value: Repeated, sizes: Sequence[int], *_: object) -> Repeated:
    value = _of_rank(value, len(sizes))
    pairs = zip(value.places, sizes, strict=True)
    return Repeated(value.once, tuple(p.expand(s) for p, s in pairs))


def _interleave(value: Repeated, times: int, axis: int | None = None) -> Repeated:
    if axis is None:
        raise _Unknown
    places = list(value.places)
    places[axis] = places[axis].repeat_interleave(times)
    return Repeated(value.once, tuple(places))


def _reshape(value: Repeated, sizes: Sequence[int]) -> Repeated:
    """Groups of old and new axes with equal products: the old ones are merged, then split."""
    old, new = value.shape, list(sizes)
    if -1 in new:
        new[new.index(-1)] = prod(old) // -prod(new)
    shape, places, i, j = list[int](), list[torch.Tensor](), 0, 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while prod(old[first:i]) != prod(new[second:j]):
            if prod(old[first:i]) < prod(new[second:j]):
                i += 1
            else:
                j += 1
        lengths, split = _split(*_merged(value, first, i), tuple(new[second:j]))
        shape += lengths
        places += split
    return Repeated(value.once.reshape(shape), tuple(places))


def _merged(value: Repeated, first: int, end: int) -> tuple[int, torch.Tensor]:
    """Neighbouring axes as one: how many slices it has, and their places."""
    count, places = 1, torch.zeros(1, dtype=torch.int64, device=value.once.device)
    for axis in range(first, end):
        length = value.once.size(axis)
        places = (places[:, None] * length + value.places[axis]).flatten()
        count *= length
    return count, places


def _split(count: int, places: torch.Tensor, sizes: tuple[int, ...]) -> tuple[list[int], list[torch.Tensor]]:
    """One axis as several: all of its slices differ, or only one of the new axes tells them apart."""
    if len(sizes) == 1:
        return [count], [places]
    if not sizes:
        return [], []
    if torch.equal(places, torch.arange(places.numel(), device=places.device)) and count == places.numel():
        return list(sizes), [torch.arange(n, device=places.device) for n in sizes]
    cells = places.reshape(sizes)
    for axis in range(len(sizes)):
        others = [0 if a != axis else slice(None) for a in range(len(sizes))]
        line = cells[tuple(others)]
        if bool((cells == line.reshape([-1 if a == axis else 1 for a in range(len(sizes))])).all()):
            nothing = [torch.zeros(n, dtype=torch.int64, device=places.device) for n in sizes]
            nothing[axis] = line
            return [count if a == axis else 1 for a in range(len(sizes))], nothing
    raise _Unknown


def _flatten(value: Repeated, first: int = 0, last: int = -1) -> Repeated:
    rank = len(value.places)
    first, last = first % rank, last % rank
    return _reshape(value, (*value.shape[:first], prod(value.shape[first : last + 1]), *value.shape[last + 1 :]))


def _pointwise(target: Callable[..., torch.Tensor], args: tuple[Computed, ...]) -> Repeated:
    """Applies an operator to each pair of slices that meet somewhere, once."""
    given = {i: _distinct(_repeated(a)) for i, a in enumerate(args) if isinstance(a, torch.Tensor | Repeated)}
    rank = max(len(v.places) for v in given.values())
    values = {i: _of_rank(v, rank) for i, v in given.items()}
    onces, places = {i: v.once for i, v in values.items()}, list[torch.Tensor]()
    for axis in range(rank):
        size = max(v.places[axis].numel() for v in values.values())
        meeting = torch.stack([v.places[axis].expand(size) for v in values.values()], 1)
        pairs, where = meeting.unique(dim=0, return_inverse=True)
        onces = {i: t.index_select(axis, pairs[:, n]) for n, (i, t) in enumerate(onces.items())}
        places.append(where)
    made = target(*(onces.get(i, a) for i, a in enumerate(args)))
    return _distinct(Repeated(made, tuple(places)))


def _distinct(value: Repeated) -> Repeated:
    """The same tensor; slices that are equal are held once."""
    once, places = value.once, list(value.places)
    for axis in range(once.dim()):
        if once.size(axis) > 1:
            once, where = once.unique(dim=axis, return_inverse=True)
            places[axis] = where[places[axis]]
    return Repeated(once, tuple(places))


_KNOWN: dict[object, Callable[..., Repeated]] = {
    aten.unsqueeze.default: _unsqueeze, aten.permute.default: _permute, aten.transpose.int: _transpose,
    aten.repeat.default: _repeat, aten.expand.default: _expand, aten.repeat_interleave.self_int: _interleave,
    aten.view.default: _reshape, aten.reshape.default: _reshape, aten.flatten.using_ints: _flatten,
    aten._unsafe_view.default: _reshape, aten.clone.default: lambda value: value,
    aten.contiguous.default: lambda value: value, operator.pos: lambda value: value,
}  # fmt: skip
