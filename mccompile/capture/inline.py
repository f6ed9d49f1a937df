"""Inlines the bodies of contexts that change nothing: autocast switched off, gradients switched off.

before: body = get_attr(submod_1); out = wrap_with_autocast("cuda", bf16, False, False, body, x); y = out[0]
after:  the nodes of `body` with x for its operand, and their result for y
refuses when: autocast is switched on inside forward. Without its context the body would run in other dtypes.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from mccompile.capture.errors import ExportError

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
# Where each puts its body among its arguments; the body's operands follow.
_BODY = {_AUTOCAST: 4, _GRAD: 1}


def inline_contexts(module: fx.GraphModule) -> None:
    """Inlines every such context, nested ones too. Raises ExportError (MC0401) for autocast that is on."""
    while contexts := [n for n in module.graph.nodes if n.op == "call_function" and n.target in _BODY]:
        for node in contexts:
            if node.target is _AUTOCAST and node.args[2]:
                raise ExportError(
                    f"`{node.name}`",
                    f"forward switches on autocast to {node.args[1]}",
                    "load the model in that dtype instead",
                )
            _inline(module, node)
    module.graph.lint()
    module.recompile()


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    at = _BODY[node.target]
    body = node.args[at]
    assert isinstance(body, fx.Node)
    inner = module.get_submodule(str(body.target))
    assert isinstance(inner, fx.GraphModule)
    operands = iter(node.args[at + 1 :])
    built: dict[fx.Node, object] = {}
    results: object = None
    with module.graph.inserting_before(node):
        for old in inner.graph.nodes:
            if old.op == "placeholder":
                built[old] = next(operands)
            elif old.op == "output":
                results = fx.node.map_arg(old.args[0], lambda a: built[a])
            else:
                new = module.graph.node_copy(old, lambda a: built[a])
                new.meta.setdefault("nn_module_stack", node.meta.get("nn_module_stack"))
                built[old] = new
    assert isinstance(results, list | tuple)
    for user in list(node.users):
        if user.target is not operator.getitem:
            raise ExportError(f"`{node.name}`", "a context that returns no tuple", "return tensors from the context")
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    if not body.users:
        module.graph.erase_node(body)
