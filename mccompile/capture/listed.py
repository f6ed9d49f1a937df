"""Brings blocks that capture does not find into the form in which it does: one list, each run once, nothing in place.

before: modules `first`, `second` of one class that attend; or `blocks.0`, `blocks.1`, `blocks.0`, `blocks.1`
after:  in the notes of the graph `block.0`, `block.1`; or `blocks.0` to `blocks.3`, one for each run
before: x.add_(y), inside a block, where x was made before it
after:  add(x, y), which later operators read in place of x
refuses when: fewer than two modules of one class and one parent attend; or another name of x is read after the write

Weights keep their names, and the numbers stay the same.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import torch
from torch import fx

from mccompile.capture.dependence import root_of, written_by
from mccompile.capture.stacks import CHILD

aten = torch.ops.aten
_ATTENDS = frozenset((aten.scaled_dot_product_attention.default, aten.softmax.int, aten._softmax.default))
_OUT_OF_PLACE = {
    aten.add_.Tensor: aten.add.Tensor, aten.sub_.Tensor: aten.sub.Tensor, aten.mul_.Tensor: aten.mul.Tensor,
    aten.div_.Tensor: aten.div.Tensor, aten.addcmul_.default: aten.addcmul.default,
    aten.silu_.default: aten.silu.default, aten.relu_.default: aten.relu.default, aten.gelu_.default: aten.gelu.default,
}  # fmt: skip
Path = tuple[str, str]  # of a module in the notes of a node: its name, its class


def attends_in_no_list(graph: fx.Graph) -> bool:
    """Whether modules that attend lie in no list, though other lists may lie inside them."""
    around = [_stack(node) for node in graph.nodes if node.target in _ATTENDS]
    return bool(_groups(graph)) and not any(CHILD.match(path) for stack in around for path, _ in stack)


def list_blocks(module: fx.GraphModule) -> bool:
    """Names the runs of blocks anew, and takes writes out of place. Says whether anything changed."""
    made = [_out_of_place(node) for node in list(module.graph.nodes) if node.target in _OUT_OF_PLACE]
    changed = any(made) | _name_runs(module.graph)
    if changed:
        module.graph.lint()
        module.recompile()
    return changed


def _name_runs(graph: fx.Graph) -> bool:
    names = {path: _list_name(graph, group) for group in _groups(graph) for path in group}
    numbers, current, changed = dict[str, Iterator[int]](), ("", ""), False
    for node in graph.nodes:
        path = next((path for path, _ in _stack(node) if path in names), None)
        if path is None:
            continue
        if path != current[0]:
            current = path, f"{names[path]}.{next(numbers.setdefault(names[path], itertools.count()))}"
        changed |= current[1] != path
        _rename(node, *current)
    return changed


def _stack(node: fx.Node) -> list[Path]:
    found = (node.meta.get("nn_module_stack") or {}).values() if node.op == "call_function" else ()
    return [(path, cls if isinstance(cls, str) else cls.__name__) for path, cls in found]


def _groups(graph: fx.Graph) -> list[list[str]]:
    """Modules of one class and one parent that attend, more than one: the outermost around each attention."""
    around = [_stack(node) for node in graph.nodes if node.target in _ATTENDS]
    of: dict[Path, dict[str, None]] = {}
    for path, cls in itertools.chain.from_iterable(around):
        if path:
            of.setdefault((path.rpartition(".")[0], cls), {})[path] = None
    chosen: dict[Path, None] = {}
    for stack in around:
        keys = ((path.rpartition(".")[0], cls) for path, cls in stack)
        chosen |= dict.fromkeys(itertools.islice((k for k in keys if len(of.get(k, ())) > 1), 1))
    return [list(of[key]) for key in chosen]


def _list_name(graph: fx.Graph, group: list[str]) -> str:
    """The list or dict that modules lie in; for attributes of a module what their names have in common."""
    parent, leaves = group[0].rpartition(".")[0], [path.rpartition(".")[2] for path in group]
    if parent and not any(parent == path for node in graph.nodes for path, _ in _stack(node)):
        return parent
    common = next(iter({re.sub(r"\W*_*\d+$", "", leaf) for leaf in leaves})) if _alike(leaves) else "block"
    return f"{parent}.{common}" if parent else common


def _alike(leaves: list[str]) -> bool:
    """Whether names differ in the number at their end alone."""
    return len({re.sub(r"_*\d+$", "", leaf) for leaf in leaves}) == 1 and re.match(r"^[A-Za-z]", leaves[0]) is not None


def _rename(node: fx.Node, path: str, name: str) -> None:
    stack = node.meta["nn_module_stack"]
    inside = (path, f"{path}.")
    node.meta["nn_module_stack"] = {
        key: (name + own.removeprefix(path), cls) if own == inside[0] or own.startswith(inside[1]) else (own, cls)
        for key, (own, cls) in stack.items()
    }


def _out_of_place(node: fx.Node) -> bool:
    """Replaces a write into a value that nothing reads by another name afterwards."""
    (target,) = written_by(node)
    root, order = root_of(target), {n: i for i, n in enumerate(node.graph.nodes)}
    if root.op in ("placeholder", "get_attr") or len({_dtype(n) for n in node.all_input_nodes}) > 1:
        return False
    names = {target, node}
    aliases = [n for n in order if order[n] < order[node] and n not in names and root_of(n) is root]
    readers = (user for alias in aliases for user in alias.users if user.target is not aten.sym_size.int)
    if any(order[user] > order[node] for user in readers):
        return False
    with node.graph.inserting_before(node):
        made = node.graph.call_function(_OUT_OF_PLACE[node.target], node.args, dict(node.kwargs))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    target.replace_all_uses_with(made, lambda user: order.get(user, -1) > order[node])
    node.graph.erase_node(node)
    return True


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None
