"""What functions of torch give for values of one sample inside the forward's loop over samples (each_sample.py).

Each rule is exact for every mask. Selecting rows costs nothing. Attention over selected rows is attention over all of
them with the others masked. Where their number becomes that of all samples again, by padding or because the rows that
were left out follow, the rows that count are brought to the front in their order (a stable sort of the mask).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from mccompile.capture.each_sample import (
    EachSample,
    NotEachSample,
    Piece,
    Positions,
    Ragged,
    RaggedLength,
    SampleIndex,
    SampleLoop,
    Size,
)

Function: TypeAlias = Callable[..., torch.Tensor]
Rule: TypeAlias = Callable[..., object]
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
    if Ellipsis in [x for x in items if x is Ellipsis]:
        place = next(i for i, x in enumerate(items) if x is Ellipsis)
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
    chosen = [i for i, x in enumerate(items) if isinstance(x, EachSample | Positions)]
    plain: list[object] = [_ALL if i in chosen else x for i, x in enumerate(items)]
    if not all(x is None or isinstance(x, int | torch.SymInt | slice) for x in plain) or len(chosen) > 1:
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
    mask = by.mask if isinstance(by, Positions) else by
    assert isinstance(mask, EachSample)
    if value.ragged is not None or mask.rank != 1 or mask.lone or mask.ragged is not None:
        raise NotEachSample("rows are selected otherwise than by a mask with one entry for each")
    if not isinstance(by, Positions) and mask.dtype != torch.bool:
        raise NotEachSample("rows are selected by numbers")
    torch._check(mask.data.size(1) == value.data.size(axis))
    selects = mask.data if mask.dtype == torch.bool else mask.data != 0
    piece = Piece(value.data.size(axis), selects, mask.root, mask.negated)
    return replace(value, ragged=Ragged(axis, (piece,)))


def _index_select(value: EachSample, dim: int, index: object) -> object:
    if not isinstance(index, Positions):
        raise NotEachSample("rows are selected by numbers")
    return _selected(value, value.at(dim), index)


def _nonzero(mask: EachSample, as_tuple: bool = False) -> Positions | tuple[Positions]:
    if mask.rank != 1 or mask.lone or mask.ragged is not None:
        raise NotEachSample("the positions of a mask with several axes")
    return (Positions(mask, column=False),) if as_tuple else Positions(mask, column=True)


def _where(condition: EachSample, *values: object) -> object:
    if values:
        return _rowwise(torch.where, (condition, *values), {})
    return _nonzero(condition, as_tuple=True)


def _flatten(value: EachSample, start_dim: int = 0, end_dim: int = -1) -> EachSample:
    start, end = start_dim % value.rank, end_dim % value.rank
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
    if not values or any(isinstance(x, EachSample) for x in kwargs.values()):
        raise NotEachSample(f"`{func.__name__}` with a value of one sample among its options")
    first = max(values, key=lambda value: value.ragged is not None)
    for value in values:
        alike = value.lone == first.lone and value.rank == first.rank and value.loop is first.loop
        if not alike or not _same_rows(value, first):
            raise NotEachSample(f"`{func.__name__}` of values with other rows")
    behind = first.data.dim() - 1 - (0 if first.ragged is None else first.ragged.axis)
    wide = func.__name__ in _BY_CHANNELS and behind < 1
    if wide or (func.__name__ in _BY_ELEMENT and any(x.dim() > behind for x in others)):
        raise NotEachSample(f"`{func.__name__}` works along the axis of the rows, or meets others there")
    made = func(*(x.data if isinstance(x, EachSample) else x for x in args), **kwargs)
    assert isinstance(made, torch.Tensor)
    return EachSample(made, first.loop, first.lone, first.ragged)


def _same_rows(one: EachSample, two: EachSample) -> bool:
    if one.ragged is None or two.ragged is None:
        return one.ragged is two.ragged
    return one.ragged.axis == two.ragged.axis and one.ragged.counts_as(two.ragged)


def _cat(tensors: Sequence[object], dim: int = 0) -> object:
    values = [x for x in tensors if isinstance(x, EachSample)]
    first = values[0]
    if len(values) == len(tensors) == 1 and first.lone and dim % first.rank == 0:
        return _of_all(first) if first.loop.over else first
    if len(values) < len(tensors) or first.loop.over or any(x.lone != first.lone or x.rank != first.rank for x in values):
        raise NotEachSample("values of one sample are joined with others")
    axis = first.at(dim)
    data = torch.cat([x.data for x in values], axis)
    if all(x.ragged is None for x in values):
        return EachSample(data, first.loop, first.lone)
    if any(x.ragged is not None and x.ragged.axis != axis for x in values):
        raise NotEachSample("values are joined along another axis than that of the rows that a mask selects")
    pieces = (p for x in values for p in (x.ragged.pieces if x.ragged else (Piece(x.data.size(axis)),)))
    return _settled(EachSample(data, first.loop, first.lone, Ragged(axis, tuple(pieces))))


def _stack(tensors: Sequence[object], dim: int = 0) -> object:
    (value, *more) = tensors
    if more or dim != 0 or not isinstance(value, EachSample) or value.lone or not value.loop.over:
        raise NotEachSample("values of one sample are stacked within the loop")
    return _of_all(value)


def _of_all(value: EachSample) -> torch.Tensor:
    """What the loop collected, of all samples."""
    if value.ragged is not None:
        raise NotEachSample("samples with different numbers of rows are joined")
    return value.data


def _pad(input: EachSample, pad: Sequence[object], mode: str = "constant", value: float | None = None) -> EachSample:
    ragged, data = input.ragged, input.data
    if ragged is None or mode != "constant" or len(pad) % 2:
        raise NotEachSample("a value of one sample is padded")
    place = 2 * (data.dim() - 1 - ragged.axis)
    more = pad[place + 1] if len(pad) > place + 1 else 0
    rest = [x for i, x in enumerate(pad) if i != place + 1]
    if any(not isinstance(x, int) or x for x in rest) or not isinstance(more, RaggedLength):
        raise NotEachSample("rows that a mask selects are padded to a number that varies")
    whole = ragged.length + more
    if isinstance(whole, RaggedLength):
        raise NotEachSample("rows that a mask selects are padded to a number that varies")
    torch._check(whole == data.size(ragged.axis))
    return _to_front(input, whole, value or 0)


def _settled(value: EachSample) -> EachSample:
    """A value as it is; with as many rows for each sample where their number does not depend on masks."""
    assert value.ragged is not None
    length = value.ragged.length
    return value if isinstance(length, RaggedLength) else _to_front(value, length, 0)


def _to_front(value: EachSample, count: Size, fill: float) -> EachSample:
    """The rows that count, in their order, and as many others as make up `count`, which are filled."""
    assert value.ragged is not None
    data, axis, pieces = value.data, value.ragged.axis, value.ragged.pieces
    lead: Size = 0
    while pieces and pieces[0].mask is None:
        lead, pieces = lead + pieces[0].rows, pieces[1:]
    if not pieces:
        return replace(value, ragged=None)
    at_front, rest = data.split([lead, data.size(axis) - lead], axis) if not statically_known_true(lead == 0) else (None, data)
    counts = _counts(data, pieces)
    order = torch.argsort((~counts).to(torch.uint8), dim=1, stable=True)[:, : count - lead]
    sizes: list[Size] = [1] * data.dim()
    sizes[0], sizes[axis] = -1, order.size(1)
    places = order.reshape(sizes).expand(*(n if i != axis else order.size(1) for i, n in enumerate(rest.shape)))
    rows = rest.gather(axis, places).masked_fill(~counts.gather(1, order).reshape(sizes), fill)
    made = rows if at_front is None else torch.cat([at_front, rows], axis)
    return EachSample(made, value.loop, value.lone)


def _counts(data: torch.Tensor, pieces: Sequence[Piece]) -> torch.Tensor:
    """Which rows of these pieces count, [samples, rows]."""
    samples, device = data.size(0), data.device
    made = [torch.ones(samples, p.rows, dtype=torch.bool, device=device) if p.mask is None else p.mask for p in pieces]
    return made[0] if len(made) == 1 else torch.cat(made, 1)


def _attention(
    query: EachSample, key: EachSample, value: EachSample, attn_mask: object = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> EachSample:  # fmt: skip
    if not all(isinstance(x, EachSample) for x in (query, key, value)) or attn_mask is not None or is_causal:
        raise NotEachSample("attention of one sample with a mask of its own, or with others")
    along = query.data.dim() - 2
    if any(x.ragged is not None and x.ragged.axis != along for x in (query, key, value)) or not _same_rows(key, value):
        raise NotEachSample("attention along another axis than that of the rows that a mask selects")
    mask = None
    if key.ragged is not None:
        mask = _counts(key.data, key.ragged.pieces)
        mask = mask.reshape(mask.size(0), *[1] * (key.data.dim() - 2), mask.size(1))
    data = F.scaled_dot_product_attention(
        query.data, key.data, value.data, mask, dropout_p, scale=scale, enable_gqa=enable_gqa
    )
    return replace(query, data=data, root=object())


_COLLECT = ("cat", "concat", "stack")
_BY_ELEMENT = frozenset((
    "to", "bool", "float", "double", "half", "bfloat16", "long", "int", "type", "type_as", "clone", "contiguous",
    "zeros_like", "ones_like", "add", "sub", "mul", "div", "neg", "exp", "tanh", "sigmoid", "relu", "silu", "gelu",
    "eq", "ne", "lt", "le", "gt", "ge", "where", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__",
    "__truediv__", "__neg__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__and__", "__or__",
))  # fmt: skip
_BY_CHANNELS = frozenset(("linear", "layer_norm", "rms_norm"))
_RULES: Mapping[str, Rule] = {
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
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "pad": _pad,
    "scaled_dot_product_attention": _attention,
}
