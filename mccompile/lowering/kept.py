"""Keeps keys, values and residuals in the policy's dtype, while graphs compute in the model's.

before: rows:     %b = index_copy_(%buffer, axis, rows, %k); sdpa(%q, %b, ...), sdpa(%q, %once_0, ...)
        once:     gives %k
        allocate: gives new_zeros(..., dtype of the model)
after:  rows:     %b = index_copy_(%buffer, axis, rows, encode(%k)); sdpa(%q, decode(%b), decode(%once_0), ...)
        once:     gives encode(%k)
        allocate: gives new_zeros(..., of the kept form)
refuses when: the part has nothing to do with kept keys and values, or they are kept as they are computed. What a block
              takes once from the prompt and does not read as keys or values (masks, ...) stays as it is.

`float8` is e4m3: 3 bits of mantissa, and at most 448. Each row of the last axis has one scale. A row is a token's head
in keys and values, and a token in residuals. A scale for a whole head would have to be known before its tokens are, and
a token of large keys would cost all others their precision. The scale is a power of two, so scaling itself rounds
nothing. It is the last byte of the row, exponent + 127, as e8m0 in OCP's MX formats. So a kept tensor stays one tensor
of bytes, whose rows are written, moved and staged together. Rounding is at most 2**-4 of a value, or 2**-17 of its
row's largest. A row with an infinity or a NaN reads back as infinities and NaNs: nothing saturates silently.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from mccompile import ir
from mccompile.capture.part import Buffer, Hoisted, Part
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Draft, Rewritten
from mccompile.lowering.hoist import is_attention

aten = torch.ops.aten
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGEST = 448.0  # of e4m3
_BIAS, _SMALLEST, _NOT_FINITE = 127.0, -126.0, 128.0  # of the exponent byte


def as_computed(kept: ir.KeptDtype) -> bool:
    """Says whether tensors are kept in the dtype in which they are computed."""
    return kept in ("auto", "model")


def kept_form(shape: torch.Size, dtype: torch.dtype, kept: ir.KeptDtype) -> tuple[torch.Size, torch.dtype]:
    """Returns the shape and dtype of the tensor that keeps one of `shape` and `dtype`."""
    if kept == "float8":
        return torch.Size((*shape[:-1], shape[-1] + 1)), torch.uint8
    return shape, _DTYPES.get(kept, dtype)


def encode(value: torch.Tensor, kept: ir.KeptDtype) -> torch.Tensor:
    """Returns a floating tensor as it is kept (see `kept_form`). It can also be traced."""
    if as_computed(kept):
        return value
    if kept != "float8":
        return aten.to.dtype(value, _DTYPES[kept])
    wide = aten.to.dtype(value, torch.float32)
    largest = aten.amax.default(aten.abs.default(wide), [-1], True)
    exponent = aten.ceil.default(aten.log2.default(aten.div.Tensor(largest, _LARGEST)))
    exponent = aten.clamp.default(exponent, _SMALLEST)
    exponent = aten.where.ScalarOther(aten.le.Scalar(largest, torch.finfo(torch.float32).max), exponent, _NOT_FINITE)
    scaled = aten.mul.Tensor(wide, aten.exp2.default(aten.neg.default(exponent)))
    small = aten.to.dtype(aten.clamp.default(scaled, -_LARGEST, _LARGEST), torch.float8_e4m3fn)
    power = aten.to.dtype(aten.add.Tensor(exponent, _BIAS), torch.uint8)
    return aten.cat.default([aten.view.dtype(small, torch.uint8), power], -1)


def decode(stored: torch.Tensor, kept: ir.KeptDtype, like: torch.Tensor) -> torch.Tensor:
    """Returns the values that `encode` was given, in the dtype of `like`."""
    if as_computed(kept):
        return stored
    if kept != "float8":
        return aten.type_as.default(stored, like)
    small = aten.contiguous.default(aten.slice.Tensor(stored, -1, 0, -1))
    power = aten.sub.Tensor(aten.to.dtype(aten.slice.Tensor(stored, -1, -1), torch.float32), _BIAS)
    wide = aten.to.dtype(aten.view.dtype(small, torch.float8_e4m3fn), torch.float32)
    return aten.type_as.default(aten.mul.Tensor(wide, aten.exp2.default(power)), like)


def keep_encoded(part: Part, kept: ir.KeptDtype) -> Rewritten | Refusal:
    """Lets a part keep as `kept` the keys and values that it writes, reads, gives or allocates."""
    draft = Draft(part)
    if as_computed(kept) or not (_attend_kept(draft, kept) | _give_kept(draft, kept)):
        return Refusal("keys and values", "the part keeps none in another dtype than it computes in")
    return Rewritten(draft.part())


def _attend_kept(draft: Draft, kept: ir.KeptDtype) -> bool:
    """Decodes what attention reads of the prompt, encodes what is written into buffers and decodes it for readers."""
    buffers = {n for o, n in draft.takes.items() if isinstance(o, Buffer)}
    hoisted = {n for o, n in draft.takes.items() if isinstance(o, Hoisted) and o.attended}
    attentions = [n for n in draft.graph.nodes if is_attention(n)]
    read = [(node, place) for node in attentions for place in (1, 2) if node.args[place] in hoisted]
    for node, place in read:
        _insert(draft.graph, node, place, decode, kept, node.args[0])
    writes = [n for n in draft.graph.nodes if n.target is aten.index_copy_.default and n.args[0] in buffers]
    for written in writes:
        readers, value = list(written.users), written.args[3]
        assert isinstance(value, fx.Node)
        _insert(draft.graph, written, 3, encode, kept)
        for reader in readers:
            tracer = fx.proxy.GraphAppendingTracer(draft.graph)
            with draft.graph.inserting_before(reader):
                whole = decode(fx.Proxy(written, tracer), kept, fx.Proxy(value, tracer))
            reader.replace_input_with(written, whole.node)
    return bool(read or writes)


def _give_kept(draft: Draft, kept: ir.KeptDtype) -> bool:
    """Encodes keys and values that the part gives, and allocates buffers in the form in which they are kept."""
    tracer = fx.proxy.GraphAppendingTracer(draft.graph)
    found = False
    for result, value in draft.gives.items():
        if isinstance(result, Hoisted) and result.attended:
            assert isinstance(value, fx.Node)
            draft.gives[result] = encode(fx.Proxy(value, tracer), kept).node
            found = True
        elif isinstance(result, Buffer):
            assert isinstance(value, fx.Node)
            _allocate_kept(draft.graph, value, kept)
            found = True
    return found


def _allocate_kept(graph: fx.Graph, zeros: fx.Node, kept: ir.KeptDtype) -> None:
    assert zeros.target is aten.new_zeros.default
    sizes = list(zeros.args[1])
    if kept == "float8":
        with graph.inserting_before(zeros):
            last = sizes[-1]
            sizes[-1] = last + 1 if isinstance(last, int) else graph.call_function(operator.add, (last, 1))
    zeros.args = (zeros.args[0], sizes)
    zeros.kwargs = {**zeros.kwargs, "dtype": torch.uint8 if kept == "float8" else _DTYPES[kept]}


def _insert(graph: fx.Graph, reader: fx.Node, place: int, form: object, kept: ir.KeptDtype, *like: fx.Node) -> None:
    """Puts `form` between a reader and its operand."""
    operand = reader.args[place]
    assert isinstance(operand, fx.Node)
    assert callable(form)
    tracer = fx.proxy.GraphAppendingTracer(graph)
    with graph.inserting_before(reader):
        values = [fx.Proxy(n, tracer) for n in (operand, *like)]
        made = form(values[0], kept, *values[1:])
    reader.update_arg(place, made.node)
