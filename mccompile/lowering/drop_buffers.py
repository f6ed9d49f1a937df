"""Removes the key and value buffers of a block, for runs that never select rows.

before: takes buffers; copy_(%buffer, %k)
after:  neither
refuses when: the block writes no buffers
"""

from __future__ import annotations

import torch

from mccompile.capture.part import Buffer, Part
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Draft, Rewritten


def drop_buffers(part: Part, setting: None) -> Rewritten | Refusal:
    """Returns a kind's full form without what it keeps."""
    draft = Draft(part)
    buffers = [o for o in part.takes if isinstance(o, Buffer)]
    if not buffers:
        return Refusal("buffers", "the block keeps no keys and values")
    for operand in buffers:
        for writer in list(draft.takes[operand].users):
            assert writer.target is torch.ops.aten.copy_.default
            draft.graph.erase_node(writer)
        draft.drop(operand)
    draft.attentions = {}
    return Rewritten(draft.part())
