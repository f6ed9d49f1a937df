"""The patch embedding as a product of matrices: tokens come out row by row, and no columns are unfolded.

before: conv3d(%latents [B, C, T, H, W], %w, %b, stride = kernel)
after:  permute(linear(patches of %latents [B, t, h, w, C * kernel], %w as a matrix, %b))
refuses when: patches overlap, leave gaps or are padded, or channels are grouped
"""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from mccompile.capture.part import attribute

aten = torch.ops.aten
_RANKS = {aten.conv2d.default: 2, aten.conv3d.default: 3}
_DEFAULTS = ((1,), (0,), (1,), 1)  # stride, padding, dilation, groups


def multiply_patches(module: fx.GraphModule) -> fx.GraphModule:
    """`module` with its patch embeddings rewritten, equal to float rounding; `module` itself where there are none."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    found = 0
    for node in module.graph.nodes:
        kernel = _kernel(module, node) if node.target in _RANKS else None
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        if kernel is not None:
            found += 1
            convolution = copies[node]
            copies[node] = _product(graph, convolution, kernel)
            graph.erase_node(convolution)
    return fx.GraphModule(module, graph) if found else module


def _kernel(module: fx.GraphModule, node: fx.Node) -> tuple[int, ...] | None:
    """The size of the patches of a convolution that cuts its input into them."""
    rank, weight = _RANKS[node.target], node.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    tensor = attribute(module, str(weight.target))
    if not isinstance(tensor, torch.Tensor) or node.kwargs:
        return None
    given = [*node.args[3:], *_DEFAULTS[len(node.args) - 3 :]]
    stride, padding, dilation = ((tuple(g) * rank)[:rank] for g in given[:3])
    kernel = tuple(tensor.shape[2:])
    fits = stride == kernel and not any(padding) and set(dilation) == {1} and given[3] == 1
    return kernel if fits else None


def _product(graph: fx.Graph, node: fx.Node, kernel: tuple[int, ...]) -> fx.Node:
    latents, weight, bias = (*node.args[:3], None)[:3]
    rank = len(kernel)
    at = latents
    assert isinstance(at, fx.Node)
    if prod(kernel) > 1:
        for i in reversed(range(rank)):
            at = graph.call_function(aten.unflatten.int, (at, i + 2, [-1, kernel[i]]))
        order = [0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2)]  # B, t, h, w, C, patch
        at = graph.call_function(aten.permute.default, (at, order))
        at = graph.call_function(aten.flatten.using_ints, (at, rank + 1))
    else:
        at = graph.call_function(aten.permute.default, (at, [0, *range(2, 2 + rank), 1]))
    at = graph.call_function(aten.contiguous.default, (at,))  # else a product per frame
    matrix = graph.call_function(aten.flatten.using_ints, (weight, 1))
    rows = graph.call_function(aten.linear.default, (at, matrix, bias))
    return graph.call_function(aten.permute.default, (rows, [0, rank + 1, *range(1, rank + 1)]))
