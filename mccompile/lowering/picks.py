"""Keeps modulation as coarse as the model makes it: blocks pick each row's frame, and no [6, tokens, C] is made.

before: gather: %m = view(index_select(%per_frame, 1, %index // tokens_per_frame), ...)
        rows:   takes the rows %m
after:  gather: gives the pick %index // tokens_per_frame too
        rows:   takes %per_frame and %pick; %m = view(index_select(%per_frame, 1, %pick), ...)
refuses when: no shared value is coarse (lowering/coarse.py), or the block reads none that is
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from mccompile.capture.part import Part, Pick, RowSource, Shared
from mccompile.capture.types import Refusal
from mccompile.lowering.coarse import SIZED, Coarse
from mccompile.lowering.draft import Draft, Rewritten

aten = torch.ops.aten


def expose_picks(part: Part, coarse: Sequence[Coarse]) -> Rewritten | Refusal:
    """Lets the gather give the index of every coarse value too."""
    if not coarse:
        return Refusal("gather", "no rows are picked from a smaller value alone")
    draft = Draft(part)
    draft.gives |= {Pick(c.name): draft.copies[c.index] for c in coarse}
    return Rewritten(draft.part())


def pick_inside(part: Part, coarse: Sequence[Coarse]) -> Rewritten | Refusal:
    """Lets a kind's row form take sources and picks in place of the coarse values."""
    read = [c for c in coarse if Shared(c.name) in part.takes]
    if not read:
        return Refusal("shared values", "the block reads none whose rows are picked from a smaller value alone")
    draft = Draft(part)
    for c in read:
        draft.take(Pick(c.name), f"pick_{c.name}")
    for c in read:
        _inline(draft, c)
    return Rewritten(draft.part())


def _inline(draft: Draft, coarse: Coarse) -> None:
    """Makes the rows of a coarse value from its source, behind all placeholders."""
    rows = draft.takes[Shared(coarse.name)]
    users = list(rows.users)
    known = draft.takes.get(RowSource(coarse.source))
    if known is None:
        draft.rename({Shared(coarse.name): RowSource(coarse.source)})
    source, graph = known or rows, draft.graph
    index, last = draft.takes[Pick(coarse.name)], graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_after(last):
        batch = graph.call_function(aten.sym_size.int, (source, 0))
    with graph.inserting_after(batch):
        count = graph.call_function(aten.sym_size.int, (index, 0))
    with graph.inserting_after(count):
        at = graph.call_function(aten.index_select.default, (source, coarse.pick.args[1], index))
    for node in coarse.chain:
        rest = fx.node.map_arg(node.args[1:], lambda _: count)
        if node.target in SIZED:
            rest = ([batch, *rest[0][1:]], *rest[1:])
        with graph.inserting_after(at):
            at = graph.call_function(node.target, (at, *rest), dict(node.kwargs))
    for user in users:
        user.replace_input_with(rows, at)
    if known is not None:
        draft.drop(Shared(coarse.name))
