"""What functions of torch give for values of one sample inside the forward's loop over samples (each_sample.py).

Each rule is exact for every mask. Rows that a mask selects stay where they are, so selecting them costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch.utils import _pytree as pytree

from mccompile.capture.each_joined import attended, joined, padded, same_rows, stacked
from mccompile.capture.each_sample import (
    EachSample,
    MaskPositions,
    NotEachSample,
    Ragged,
    RaggedPiece,
    SampleIndex,
    SampleLoop,
)

EachRule: TypeAlias = Callable[..., object]
_ALL = slice(None)


def applied(func: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """What a function of torch gives. Raises NotEachSample where that is not known."""
    name = func.__name__
    values = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, EachSample)]
    if any(x.loop.over for x in values) and name not in _COLLECT:
        raise NotEachSample("a value of the last sample is used after the loop")
    if name in _RULES:
        return _RULES[name](*args, **kwargs)
    if name in _BY_ELEMENT or name in _BY_CHANNELS:
        return _rowwise(func, args, kwargs)
    raise NotEachSample(f"`{name}` of a value of one sample")


def taken(tensor: torch.Tensor, index: object) -> object:
    """`tensor[index]`, where the index holds the number of the loop's sample."""
    first, *rest = index if isinstance(index, tuple) else (index,)
    match first:
        case SampleIndex(loop, 0):
            return _indexed(_of_samples(tensor, loop, lone=False), tuple(rest))
        case slice(start=SampleIndex(loop, 0), stop=SampleIndex(_, 1), step=None):
            return _indexed(_of_samples(tensor, loop, lone=True), (_ALL, *rest))
    raise NotEachSample("the number of the sample is used otherwise than as `x[i]` and `x[i : i + 1]`")


def _of_samples(tensor: torch.Tensor, loop: SampleLoop, lone: bool) -> EachSample:
    if loop.over:
        raise NotEachSample("the number of the last sample is used after the loop")
    torch._check(tensor.size(0) == loop.count)
    return EachSample(tensor, loop, lone)


def each_of(tensor: torch.Tensor, loop: SampleLoop) -> EachSample:
    """What a loop over a tensor's first axis goes through."""
    return _of_samples(tensor, loop, lone=False)


def _indexed(value: EachSample, index: object) -> object:
    items = list(index) if isinstance(index, tuple) else [index]
    for place in [i for i, x in enumerate(items) if x is Ellipsis]:
        missing = value.rank - sum(x is not None for x in items) + 1
        items[place : place + 1] = [_ALL] * missing
    if not items:
        return value
    lone = value.lone
    if lone:
        if items[0] != _ALL:
            raise NotEachSample("the axis of the samples is worked along")
        items = items[1:]
    elif items[0] is None:
        items, lone = items[1:], True  # the axis of size 1 may be that of the samples as well
    chosen = [i for i, x in enumerate(items) if isinstance(x, EachSample | MaskPositions)]
    plain: list[object] = [_ALL if i in chosen else x for i, x in enumerate(items)]
    known = all(x is None or (isinstance(x, int | torch.SymInt | slice) and not isinstance(x, bool)) for x in plain)
    if not known or len(chosen) > 1:
        raise NotEachSample("a value of one sample is indexed in an unknown way")
    ragged = _kept(value.ragged, plain)
    data = value.data[(_ALL, *plain)] if any(x is None or x != _ALL for x in plain) else value.data
    made = replace(value, data=data, lone=lone, ragged=ragged, root=object(), negated=False)
    if not chosen:
        return made
    axis = 1 + sum(not isinstance(x, int | torch.SymInt) for x in plain[: chosen[0]])
    return _selected(made, axis, items[chosen[0]])


def _kept(ragged: Ragged | None, items: Sequence[object]) -> Ragged | None:
    """The ragged axis after indexing with these items, which are of the axes behind that of the samples."""
    if ragged is None:
        return None
    axis = new = 1
    for item in items:
        if axis == ragged.axis and item is not None:
            break
        new += not isinstance(item, int | torch.SymInt)
        axis += item is not None
    else:
        return replace(ragged, axis=new + ragged.axis - axis)
    if item != _ALL:
        raise NotEachSample("some of the rows that a mask selects are taken")
    return replace(ragged, axis=new)


def _selected(value: EachSample, axis: int, by: object) -> EachSample:
    """The rows along an axis of the data that a mask selects."""
    mask = by.mask if isinstance(by, MaskPositions) else by
    assert isinstance(mask, EachSample)
    if value.ragged is not None or mask.rank != 1 or mask.lone or mask.ragged is not None:
        raise NotEachSample("rows are selected otherwise than by a mask with one entry for each")
    if not isinstance(by, MaskPositions) and mask.dtype != torch.bool:
        raise NotEachSample("rows are selected by numbers")
    torch._check(mask.data.size(1) == value.data.size(axis))
    selects = mask.data if mask.dtype == torch.bool else mask.data != 0
    piece = RaggedPiece(value.data.size(axis), selects, mask.root, mask.negated)
    return replace(value, ragged=Ragged(axis, (piece,)))


def _index_select(value: EachSample, dim: int, index: object) -> object:
    if not isinstance(index, MaskPositions):
        raise NotEachSample("rows are selected by numbers")
    return _selected(value, value.at(dim), index)


def _nonzero(mask: EachSample, as_tuple: bool = False) -> MaskPositions | tuple[MaskPositions]:
    if mask.rank != 1 or mask.lone or mask.ragged is not None:
        raise NotEachSample("the positions of a mask with several axes")
    return (MaskPositions(mask, column=False),) if as_tuple else MaskPositions(mask, column=True)


def _where(condition: EachSample, *values: object) -> object:
    if values:
        return _rowwise(torch.where, (condition, *values), {})
    return _nonzero(condition, as_tuple=True)


def _flatten(value: EachSample, start_dim: int = 0, end_dim: int = -1) -> EachSample:
    start, end = start_dim % value.rank, end_dim % value.rank
    if start == end:
        return value
    first, last = start + (not value.lone), end + (not value.lone)
    lone = value.lone and start > 0
    data = value.data.flatten(max(first, 1), last) if last > max(first, 1) else value.data
    if value.ragged is not None and value.ragged.axis >= first:
        raise NotEachSample("rows that a mask selects are flattened")
    return replace(value, data=data, lone=lone)


def _reshape(value: EachSample, *sizes: object) -> EachSample:
    if sizes in ((-1,), ((-1,),), ([-1],)):
        return _flatten(value)
    raise NotEachSample("a value of one sample is reshaped")


def _unsqueeze(value: EachSample, dim: int) -> EachSample:
    axis = dim % (value.rank + 1) + (not value.lone)
    if axis == 0:
        raise NotEachSample("an axis is put in front of that of the samples")
    ragged = value.ragged
    if ragged is not None and ragged.axis >= axis:
        ragged = replace(ragged, axis=ragged.axis + 1)
    return replace(value, data=value.data.unsqueeze(axis), ragged=ragged)


def _transpose(value: EachSample, dim0: int, dim1: int) -> EachSample:
    one, two = value.at(dim0), value.at(dim1)
    ragged = value.ragged
    if ragged is not None and ragged.axis in (one, two):
        ragged = replace(ragged, axis=two if ragged.axis == one else one)
    return replace(value, data=value.data.transpose(one, two), ragged=ragged)


def _invert(mask: EachSample) -> EachSample:
    if mask.dtype != torch.bool:
        raise NotEachSample("a mask of numbers is inverted")
    return replace(mask, data=~mask.data, negated=not mask.negated)


def _rowwise(func: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> EachSample:
    """A function that treats every row by itself: element by element, or along the last axis."""
    values = [x for x in args if isinstance(x, EachSample)]
    others = [x for x in args if isinstance(x, torch.Tensor)]
    if not values or kwargs.get("inplace") or any(isinstance(x, EachSample | torch.Tensor) for x in kwargs.values()):
        raise NotEachSample(f"`{func.__name__}` in place, or with a value among its options")
    first = max(values, key=lambda value: value.ragged is not None)
    for value in values:
        alike = value.lone == first.lone and value.rank == first.rank and value.loop is first.loop
        if not alike or not same_rows(value, first):
            raise NotEachSample(f"`{func.__name__}` of values with other rows")
    behind = first.data.dim() - 1 - (0 if first.ragged is None else first.ragged.axis)
    sizes = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else (1,)
    wide = func.__name__ in _BY_CHANNELS and behind < len(sizes)
    if wide or (func.__name__ in _BY_ELEMENT and any(x.dim() > behind for x in others)):
        raise NotEachSample(f"`{func.__name__}` works along the axis of the rows, or meets others there")
    made = func(*(x.data if isinstance(x, EachSample) else x for x in args), **kwargs)
    assert isinstance(made, torch.Tensor)
    return EachSample(made, first.loop, first.lone, first.ragged)


_COLLECT = ("cat", "concat", "stack")
_BY_ELEMENT = frozenset((
    "to", "bool", "float", "double", "half", "bfloat16", "long", "int", "type", "type_as", "clone", "contiguous",
    "zeros_like", "ones_like", "add", "sub", "mul", "div", "neg", "exp", "tanh", "sigmoid", "relu", "silu", "gelu",
    "eq", "ne", "lt", "le", "gt", "ge", "where", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__",
    "__truediv__", "__neg__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__and__", "__or__",
))  # fmt: skip
_BY_CHANNELS = frozenset(("linear", "layer_norm", "rms_norm"))
_RULES: Mapping[str, EachRule] = {
    "__getitem__": _indexed,
    "index_select": _index_select,
    "nonzero": _nonzero,
    "where": _where,
    "flatten": _flatten,
    "reshape": _reshape,
    "view": _reshape,
    "unsqueeze": _unsqueeze,
    "transpose": _transpose,
    "__invert__": _invert,
    "bitwise_not": _invert,
    "logical_not": _invert,
    "cat": joined,
    "concat": joined,
    "stack": stacked,
    "pad": padded,
    "scaled_dot_product_attention": attended,
}
