"""Keys, values and residuals are kept in the policy's dtype; graphs compute in the model's.

before: %b = index_copy_(%buffer, axis, rows, %k);                    sdpa(%q, %b, ...), sdpa(%q, %once_0, ...)
after:  %b = index_copy_(%buffer, axis, rows, encode(%k));            sdpa(%q, decode(%b), decode(%once_0), ...)
        once: (text, w) -> (encode(%k),);                             allocate: buffers of the kept form
refuses when: never; for the dtype `model` (or `auto`) the forms come back as they are. Values that are hoisted out
of a block but are no keys or values (masks, ...) stay as they are.

`float8` is e4m3 (3 bits of mantissa, at most 448) with one scale for each row of the last axis: of K and V a token's
head, of residuals a token. A scale per head alone would have to be known before its tokens are, and a token of large
keys would cost all others their precision. The scale is a power of two, so that scaling itself rounds nothing, and is
the last byte of the row (as e8m0 in OCP's MX formats: exponent + 127): a kept tensor stays one tensor of bytes whose
rows are written, moved and staged together. Rounding is at most 2**-4 of a value, or 2**-17 of its row's largest.
A row with an infinity or a NaN reads back as infinities and NaNs: nothing saturates silently.
"""

from __future__ import annotations

import copy
import operator

import torch
from torch import fx

from mccompile import ir
from mccompile.lowering.strip import Slim

aten = torch.ops.aten
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGEST = 448.0  # of e4m3
_BIAS, _NOT_FINITE = 127.0, 128.0  # of the exponent byte
_ATTENTIONS = ("scaled_dot_product_attention", "prefix_attention")


def as_computed(kept: ir.KeptDtype) -> bool:
    """Whether tensors are kept in the dtype in which they are computed."""
    return kept in ("auto", "model")


def kept_form(shape: torch.Size, dtype: torch.dtype, kept: ir.KeptDtype) -> tuple[torch.Size, torch.dtype]:
    """Shape and dtype of the tensor that keeps one of `shape` and `dtype`."""
    if kept == "float8":
        return torch.Size((*shape[:-1], shape[-1] + 1)), torch.uint8
    return shape, _DTYPES.get(kept, dtype)


def encode(value: torch.Tensor, kept: ir.KeptDtype) -> torch.Tensor:
    """A floating tensor as it is kept; see `kept_form`. Also traces."""
    if as_computed(kept):
        return value
    if kept != "float8":
        return aten.to.dtype(value, _DTYPES[kept])
    wide = aten.to.dtype(value, torch.float32)
    largest = aten.amax.default(aten.abs.default(wide), [-1], True)
    exponent = aten.ceil.default(aten.log2.default(aten.div.Tensor(largest, _LARGEST)))
    exponent = aten.clamp.default(exponent, 1 - _BIAS, _NOT_FINITE - 1)
    exponent = aten.where.ScalarOther(aten.le.Scalar(largest, torch.finfo(torch.float32).max), exponent, _NOT_FINITE)
    scaled = aten.mul.Tensor(wide, aten.exp2.default(aten.neg.default(exponent)))
    small = aten.to.dtype(aten.clamp.default(scaled, -_LARGEST, _LARGEST), torch.float8_e4m3fn)
    power = aten.to.dtype(aten.add.Tensor(exponent, _BIAS), torch.uint8)
    return aten.cat.default([aten.view.dtype(small, torch.uint8), power], -1)


def decode(stored: torch.Tensor, kept: ir.KeptDtype, like: torch.Tensor) -> torch.Tensor:
    """The values of `encode`, in the dtype of `like`."""
    if as_computed(kept):
        return stored
    if kept != "float8":
        return aten.type_as.default(stored, like)
    small = aten.contiguous.default(aten.slice.Tensor(stored, -1, 0, -1))
    power = aten.sub.Tensor(aten.to.dtype(aten.slice.Tensor(stored, -1, -1), torch.float32), _BIAS)
    wide = aten.to.dtype(aten.view.dtype(small, torch.float8_e4m3fn), torch.float32)
    return aten.type_as.default(aten.mul.Tensor(wide, aten.exp2.default(power)), like)


def keep_encoded(rest: Slim, once: Slim | None, places: int, kept: ir.KeptDtype) -> tuple[Slim, Slim | None]:
    """A kind's row form and its part `once` (lowering/hoist.py), with keys and values kept as `kept`.

    places: where the values of `once` begin in the argument list that `rest.kept` counts in.
    """
    if as_computed(kept):
        return rest, once
    module = fx.GraphModule(rest.module, copy.deepcopy(rest.module.graph))
    holders = module.graph.find_nodes(op="placeholder")
    hoisted = {n: p - places for n, p in zip(holders, rest.kept, strict=True) if p >= places}
    hoisted = {n: i for n, i in hoisted.items() if all(_is_attention(u) and n in u.args[1:3] for u in n.users)}
    for node in list(module.graph.nodes):
        if not _is_attention(node):
            continue
        for place in (1, 2):
            operand = node.args[place]
            if operand.target is aten.index_copy_.default and operand.args[0].op == "placeholder":
                _insert(module.graph, operand, 3, encode, kept)
            elif operand not in hoisted:
                continue
            _insert(module.graph, node, place, decode, kept, node.args[0])
    module.graph.lint()
    module.recompile()
    return Slim(module, rest.kept), _encoded(once, set(hoisted.values()), kept)


def keep_allocated(allocate: fx.GraphModule, kept: ir.KeptDtype) -> fx.GraphModule:
    """(*streams, *shared) -> zeros in the kept form of the buffers that `allocate` makes."""
    if as_computed(kept):
        return allocate
    module = fx.GraphModule(allocate, copy.deepcopy(allocate.graph))
    for node in [n for n in module.graph.nodes if n.target is aten.new_zeros.default]:
        sizes = list(node.args[1])
        if kept == "float8":
            with module.graph.inserting_before(node):
                last = sizes[-1]
                sizes[-1] = last + 1 if isinstance(last, int) else module.graph.call_function(operator.add, (last, 1))
        node.args = (node.args[0], sizes)
        node.kwargs = {**node.kwargs, "dtype": torch.uint8 if kept == "float8" else _DTYPES[kept]}
    module.graph.lint()
    module.recompile()
    return module


def _is_attention(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._opname in _ATTENTIONS


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


def _encoded(once: Slim | None, lasting: set[int], kept: ir.KeptDtype) -> Slim | None:
    if once is None or not lasting:
        return once
    module = fx.GraphModule(once.module, copy.deepcopy(once.module.graph))
    output = module.graph.output_node()
    tracer = fx.proxy.GraphAppendingTracer(module.graph)
    with module.graph.inserting_before(output):
        values = [
            encode(fx.Proxy(n, tracer), kept).node if i in lasting else n for i, n in enumerate(output.args[0])
        ]
    output.args = (tuple(values),)
    module.graph.lint()
    module.recompile()
    return Slim(module, once.kept)
