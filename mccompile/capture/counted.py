"""Lengths that a forward counts in a mask, told apart from constants: the second call counts fewer rows.

before: both calls are of one prompt, and `text[:, : mask.sum()]` has 11 rows at both, as a constant size would
after:  the mask of the second call leaves out the last of its rows: 11 rows at one call, 10 at the other
refuses when: the model does not take such a mask; then the length is that of the recorded prompt
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace

import networkx as nx
import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import renewed
from mccompile.capture.by_sample import is_mask
from mccompile.capture.dependence import flow_graph
from mccompile.capture.export import Exported


def reads_number(node: fx.Node) -> bool:
    """Whether an operator makes a number of what a tensor holds."""
    if not isinstance(node.target, OpOverload):
        return False
    return torch.Tag.data_dependent_output in node.target.tags and is_number(node)


def is_number(node: fx.Node) -> bool:
    """Whether a node is a number. A graph has Python's functions for numbers alone, and to take tensors off a list."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    if isinstance(node.target, OpOverload):
        returns = node.target._schema.returns
        return bool(returns) and not any("Tensor" in str(result.type) for result in returns)
    return True


def counting_fewer(
    model: nn.Module, exported: Exported, second: Mapping[str, object]
) -> tuple[Exported, Mapping[str, object]]:
    """The exported graph and its second call, with fewer rows in the masks that the forward counts and that both share.

    second: in the order of forward's arguments, as the graph was exported.
    """
    masks = _counted(exported)
    if not masks:
        return exported, second
    leaves = [_one_less(x) if i in masks else x for i, x in enumerate(exported.second)]
    call = pytree.tree_unflatten(leaves, pytree.tree_structure(dict(second)))
    try:
        with torch.no_grad():
            found = [x for x in pytree.tree_leaves(model(**renewed(call))) if isinstance(x, torch.Tensor)]
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return exported, second
    if not all(bool(x.isfinite().all()) for x in found):
        return exported, second
    return replace(exported, second=tuple(leaves)), call


def _counted(exported: Exported) -> frozenset[int]:
    """The places of the masks that are the same at both calls, and of which a number is made."""
    graph = exported.module.graph
    reads = [node for node in graph.nodes if reads_number(node)]
    if not reads:
        return frozenset()
    flow = flow_graph(graph, until=reads)
    reached = set().union(*(nx.ancestors(flow, node) for node in reads))
    leaves = zip(graph.find_nodes(op="placeholder"), exported.probe, exported.second, strict=True)
    return frozenset(i for i, (holder, one, two) in enumerate(leaves) if holder in reached and _is_shared(one, two))


def _is_shared(one: object, two: object) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
        return False
    if not is_mask(one) or not is_mask(two) or one.shape[1:] != two.shape[1:]:
        return False
    return torch.equal(one[:1], two[:1]) and bool((two.sum(1) > 2).all())


def _one_less(mask: object) -> torch.Tensor:
    """A mask [samples, rows] without the last row that counts in each sample."""
    assert isinstance(mask, torch.Tensor)
    rows = torch.arange(mask.size(1), device=mask.device)
    last = (rows * (mask != 0)).amax(1, keepdim=True)
    return torch.where(rows == last, torch.zeros_like(mask), mask)
