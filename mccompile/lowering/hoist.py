"""Computes once, and not in every call, what a block makes of the prompt alone: keys and values of the text.

before: rows: %k = linear(%text, %w), %q = linear(%x_rows, ...), sdpa(%q, %k, ...)
after:  once: takes text and w, gives %k;  rows: takes %once_0; sdpa(%q, %once_0, ...)
refuses when: nothing is computed from the prompt alone; values made of weights alone, and views, stay where they are
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx

from mccompile.capture.part import Hoisted, Operand, Part, Result, Weight
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Draft, Rewritten, inputs_of, mutates
from mccompile.lowering.strip import cut

_ATTENTIONS = ("scaled_dot_product_attention", "prefix_attention", "window_attention", "picked_attention")


def hoist(part: Part, lasting: frozenset[Operand]) -> Rewritten | Refusal:
    """Splits off what weights and `lasting` alone determine: the operands that stay the same through a request."""
    front = _front(part, lasting)
    if not front:
        return Refusal("the prompt", "nothing is computed from it alone")
    draft = Draft(part)
    holders = [draft.take(Hoisted(i, False), f"once_{i}") for i in range(len(front))]
    for node, holder in zip(front, holders, strict=True):
        made = draft.copies[node]
        made.replace_all_uses_with(holder)
        draft.gives = {r: holder if v is made else v for r, v in draft.gives.items()}
    rest = draft.part()
    attended = [_attended(n) for o, n in rest.holders().items() if isinstance(o, Hoisted)]
    named: dict[Operand, Operand] = {Hoisted(i, False): Hoisted(i, a) for i, a in enumerate(attended)}
    rest = Part(rest.module, tuple(named.get(o, o) for o in rest.takes), rest.gives, rest.attentions)
    gives: dict[Result, fx.Node] = {Hoisted(i, a): n for i, (a, n) in enumerate(zip(attended, front, strict=True))}
    return Rewritten(rest, (cut(part, gives, writes=False),))  # no constant is made of what is written to


def _front(part: Part, lasting: frozenset[Operand]) -> list[fx.Node]:
    """Returns the values to compute once: made of what lasts, worth keeping, and read by what does not last."""
    operands = {n: o for o, n in part.holders().items()}
    constant: dict[fx.Node, bool] = {}  # constant nodes: whether it pays to keep the value
    for node in part.graph.nodes:
        if node in operands and (operands[node] in lasting or isinstance(operands[node], Weight)):
            constant[node] = False
        elif _repeatable(node) and node.all_input_nodes and all(n in constant for n in node.all_input_nodes):
            works = _computes(node) and any(operands[n] in lasting for n in inputs_of(node))
            constant[node] = works or any(constant[n] for n in node.all_input_nodes)
    front = [n for n, pays in constant.items() if pays and any(u not in constant for u in n.users)]
    return [n for n in front if not _is_number(n)]


def _attended(holder: fx.Node) -> bool:
    """Says whether attention reads a value as keys or values, and nothing else reads it."""
    return all(is_attention(u) and holder in u.args[1:3] for u in holder.users)


def is_attention(node: fx.Node) -> bool:
    """Says whether an operator attends."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._opname in _ATTENTIONS


def _repeatable(node: fx.Node) -> bool:
    if node.op != "call_function" or mutates(node):
        return False
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags and not any(mutates(u) for u in _aliases(node))


def _aliases(node: fx.Node) -> Iterable[fx.Node]:
    """Yields what may write into a value: its readers, and the readers of its views."""
    for user in node.users:
        yield user
        if not isinstance(user.target, torch._ops.OpOverload) or user.target.is_view:  # an entry of views is one
            yield from _aliases(user)


def _computes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and not _is_number(node) and not node.target.is_view


def _is_number(node: fx.Node) -> bool:
    """Says whether a node gives a size or arithmetic of sizes. An entry of a tuple is none."""
    if node.target is operator.getitem:
        return False
    return not isinstance(node.target, torch._ops.OpOverload) or "sym_" in node.target._opname
