"""Where the rows of one sample meet others, inside the forward's loop over samples: joined, padded, attended to.

Attention over selected rows is attention over all of them, with the others masked. Where their number becomes that of
all samples again, by padding or because the rows that were left out follow, the rows that count are brought to the
front in their order, by a stable sort of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F

from mccompile.capture.each_sample import EachSample, NotEachSample, Ragged, RaggedLength, RaggedPiece, RowCount


def same_rows(one: EachSample, two: EachSample) -> bool:
    if one.ragged is None or two.ragged is None:
        return one.ragged is two.ragged
    return one.ragged.axis == two.ragged.axis and one.ragged.counts_as(two.ragged)


def joined(tensors: Sequence[object], dim: int = 0) -> object:
    values = [x for x in tensors if isinstance(x, EachSample)]
    first = values[0]
    if len(values) == len(tensors) == 1 and first.lone and dim % first.rank == 0:
        return _of_all(first) if first.loop.over else first
    alike = all((x.lone, x.rank) == (first.lone, first.rank) for x in values)
    if len(values) < len(tensors) or first.loop.over or not alike:
        raise NotEachSample("values of one sample are joined with others")
    axis = first.at(dim)
    data = torch.cat([x.data for x in values], axis)
    if all(x.ragged is None for x in values):
        return EachSample(data, first.loop, first.lone)
    if any(x.ragged is not None and x.ragged.axis != axis for x in values):
        raise NotEachSample("values are joined along another axis than that of the rows that a mask selects")
    pieces = (p for x in values for p in (x.ragged.pieces if x.ragged else (RaggedPiece(x.data.size(axis)),)))
    return _settled(EachSample(data, first.loop, first.lone, Ragged(axis, tuple(pieces))))


def stacked(tensors: Sequence[object], dim: int = 0) -> object:
    (value, *more) = tensors
    if more or dim != 0 or not isinstance(value, EachSample) or value.lone or not value.loop.over:
        raise NotEachSample("values of one sample are stacked within the loop")
    return _of_all(value)


def _of_all(value: EachSample) -> torch.Tensor:
    """What the loop collected, of all samples."""
    if value.ragged is not None:
        raise NotEachSample("samples with different numbers of rows are joined")
    return value.data


def padded(input: EachSample, pad: Sequence[object], mode: str = "constant", value: float | None = None) -> EachSample:
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


def _to_front(value: EachSample, count: RowCount, fill: float) -> EachSample:
    """The rows that count, in their order, and as many others as make up `count`, which are filled."""
    assert value.ragged is not None
    data, axis, pieces = value.data, value.ragged.axis, value.ragged.pieces
    lead: RowCount = 0
    while pieces and pieces[0].mask is None:
        lead, pieces = lead + pieces[0].rows, pieces[1:]
    if not pieces:
        return replace(value, ragged=None)
    joint = not statically_known_true(lead == 0)
    at_front, rest = data.split([lead, data.size(axis) - lead], axis) if joint else (data, data)
    counts = _counts(data, pieces)
    order = torch.argsort((~counts).to(torch.uint8), dim=1, stable=True)[:, : count - lead]
    sizes: list[RowCount] = [1] * data.dim()
    sizes[0], sizes[axis] = -1, order.size(1)
    places = order.reshape(sizes).expand(*(n if i != axis else order.size(1) for i, n in enumerate(rest.shape)))
    rows = rest.gather(axis, places).masked_fill(~counts.gather(1, order).reshape(sizes), fill)
    made = torch.cat([at_front, rows], axis) if joint else rows
    return EachSample(made, value.loop, value.lone)


def _counts(data: torch.Tensor, pieces: Sequence[RaggedPiece]) -> torch.Tensor:
    """Which rows of these pieces count, [samples, rows]."""
    samples, device = data.size(0), data.device
    made = [torch.ones(samples, p.rows, dtype=torch.bool, device=device) if p.mask is None else p.mask for p in pieces]
    return made[0] if len(made) == 1 else torch.cat(made, 1)


def attended(
    query: EachSample, key: EachSample, value: EachSample, attn_mask: object = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> EachSample:  # fmt: skip
    if not all(isinstance(x, EachSample) for x in (query, key, value)) or attn_mask is not None or is_causal:
        raise NotEachSample("attention of one sample with a mask of its own, or with others")
    along = query.data.dim() - 2
    if any(x.ragged is not None and x.ragged.axis != along for x in (query, key, value)) or not same_rows(key, value):
        raise NotEachSample("attention along another axis than that of the rows that a mask selects")
    mask = None
    if key.ragged is not None:
        mask = _counts(key.data, key.ragged.pieces)
        mask = mask.reshape(mask.size(0), *[1] * (key.data.dim() - 2), mask.size(1))
    data = F.scaled_dot_product_attention(
        query.data, key.data, value.data, mask, dropout_p, scale=scale, enable_gqa=enable_gqa
    )
    return replace(query, data=data, root=object())
