"""Attends from selected queries without a dense mask, if the mask is block-causal.

before: sdpa(q_rows, k_buffer, v_buffer, mask_rows)
after:  takes bounds and seen too; mccompile::prefix_attention(q_rows, k_buffer, v_buffer, bounds, seen)
refuses when: no attention has a mask that was proved to be prefixes of the keys (attention.prefix_lengths)
"""

from __future__ import annotations

import torch

from mccompile.capture.part import Part, PerSelection
from mccompile.capture.types import Refusal
from mccompile.lowering.attention import bounds_of, seen_of
from mccompile.lowering.draft import Draft, Rewritten

aten = torch.ops.aten
BOUNDS = PerSelection("bounds", bounds_of)  # int64 [groups, 3] on the host
SEEN = PerSelection("seen", seen_of, on_device=True)  # int32 [n]


def use_prefixes(part: Part, proved: frozenset[str]) -> Rewritten | Refusal:
    """Lets a kind's row form attend over prefixes. proved: the shared values that are prefixes at every row."""
    draft = Draft(part)
    masked = {n: s for n, s in draft.attentions.items() if s.mask is not None and s.mask.name in proved}
    masked = {n: s for n, s in masked.items() if n.target is aten.scaled_dot_product_attention.default}
    if not masked:
        return Refusal("attention masks", "none of them was proved to be prefixes of the keys")
    bounds, seen = draft.take(BOUNDS, BOUNDS.name), draft.take(SEEN, SEEN.name)
    for node in masked:
        q, k, v = node.args[:3]
        arguments = (q, k, v, bounds, seen, node.kwargs.get("scale"))
        with draft.graph.inserting_before(node):
            new = draft.graph.call_function(torch.ops.mccompile.prefix_attention.default, arguments)
        draft.replace(node, new)
    return Rewritten(draft.part())
