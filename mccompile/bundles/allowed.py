"""The operators, functions and methods that a graph in a bundle may call: arithmetic on tensors and sizes, and views.

Nothing on the list reads or writes files, imports, or calls what it is given.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket

_TAGS = {torch.Tag.core, torch.Tag.pointwise}  # torch's own marks of operators that compute and do nothing else
_ATEN = frozenset({
    "_assert_scalar", "_assert_tensor_metadata", "_fused_rms_norm", "_softmax", "_unsafe_view",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "all", "any", "arange", "avg_pool1d",
    "baddbmm", "batch_norm", "broadcast_tensors", "broadcast_to", "bucketize", "cartesian_prod", "chunk", "complex",
    "concat", "concatenate", "contiguous", "conv1d", "conv2d", "conv3d", "copy_", "cross", "cumprod", "detach",
    "detach_", "diag", "diag_embed", "diff", "divide", "dot", "dropout", "einsum", "empty_like", "expand_as", "eye",
    "fill_", "flatten", "floor_divide", "glu", "group_norm", "hstack", "imag", "index_add", "index_add_",
    "index_copy", "index_copy_", "index_fill", "index_put_", "instance_norm", "is_nonzero", "layer_norm",
    "lift_fresh", "lift_fresh_copy", "linalg_norm", "linalg_vector_norm", "linear", "linspace", "log_softmax",
    "logsumexp", "masked_fill_", "masked_select", "matmul", "meshgrid", "moveaxis", "movedim", "multiply", "mv",
    "narrow", "new_empty", "new_full", "new_ones", "new_zeros", "norm", "numpy_T", "one_hot", "ones", "ones_like",
    "outer", "pad", "pixel_shuffle", "pixel_unshuffle", "polar", "real", "repeat_interleave", "reshape",
    "reshape_as", "resolve_conj", "resolve_neg", "rms_norm", "roll", "rot90", "scaled_dot_product_attention",
    "scatter_", "scatter_add_", "searchsorted", "select_copy", "size", "softmax", "split", "squeeze_", "stack",
    "std", "std_mean", "subtract", "sum_to_size", "swapaxes", "swapdims", "sym_constrain_range",
    "sym_constrain_range_for_size", "t", "take_along_dim", "tensor_split", "tensordot", "tile", "to", "transpose",
    "transpose_", "tril", "triu", "type_as", "unbind", "unflatten", "unfold", "unsqueeze_", "upsample_bilinear2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d", "var_mean", "view_as",
    "view_as_complex", "view_as_real", "vstack", "zero_", "zeros", "zeros_like",
})  # fmt: skip
_PRIMS = frozenset({
    "broadcast_in_dim", "convert_element_type", "device_put", "iota", "squeeze", "view_of",
})  # fmt: skip
_OPERATOR = frozenset({
    "abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lt", "mod", "mul", "ne", "neg", "not_",
    "or_", "pos", "pow", "sub", "truediv",
})  # fmt: skip
_MATH = frozenset({
    "ceil", "floor", "sqrt", "trunc",
})  # fmt: skip
_TORCH = frozenset({
    "add", "arange", "cat", "div", "exp", "full", "mul", "ones", "sqrt", "stack", "sub", "sym_float", "sym_int",
    "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt", "sym_sum", "where", "zeros",
})  # fmt: skip
_METHODS = frozenset({
    "add", "contiguous", "div", "expand", "flatten", "float", "mul", "permute", "reshape", "size", "sub", "to",
    "transpose", "type_as", "unflatten", "unsqueeze", "view",
})  # fmt: skip
_MODULES = {"operator": (operator, _OPERATOR), "math": (math, _MATH), "torch": (torch, _TORCH)}


def function_named(text: str) -> Callable[..., object]:
    """The function that a node of `write_graph` names. Raises ValueError for one that is not on the list."""
    if text.startswith("torch.ops."):
        found = _operator(text.removeprefix("torch.ops.").split("."))
    else:
        home, _, name = text.rpartition(".")
        module, names = _MODULES.get(home, (None, frozenset[str]()))
        found = getattr(module, name) if name in names else None
    if found is None:
        raise ValueError(f"`{text:.100}` is not among the functions that graphs may call")
    return found


def is_method(name: str) -> bool:
    """Whether a graph may call this method of a tensor."""
    return name in _METHODS


def refused_calls(graph: fx.Graph) -> list[str]:
    """What `graph` calls that is not on the list."""
    found = []
    for node in graph.nodes:
        if node.op == "call_method" and not is_method(node.target):
            found.append(f"the method {node.target}")
        if node.op == "call_function" and isinstance(node.target, OpOverload) and not _is_allowed(node.target):
            found.append(f"the operator {node.target}")
    return found


def _operator(parts: list[str]) -> OpOverload | None:
    if len(parts) != 3 or not all(p.isidentifier() and not p.startswith("__") for p in parts):
        return None
    namespace, name, overload = parts
    if namespace not in ("aten", "prims"):
        return None
    try:
        packet = getattr(getattr(torch.ops, namespace), name)
        found = getattr(packet, overload) if isinstance(packet, OpOverloadPacket) else None
    except AttributeError:
        return None
    return found if isinstance(found, OpOverload) and _is_allowed(found) else None


def _is_allowed(target: OpOverload) -> bool:
    name = target._schema.name.partition("::")[2]
    match target.namespace:
        case "aten":
            return name in _ATEN or not _TAGS.isdisjoint(target.tags)
        case "prims":
            return name in _PRIMS
    return False
