"""The capture of one expert, read over the weights of another one that is built alike: so it is exported once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.backend.graph_text import UnwritableGraph
from mccompile.bundles.captured_text import read_captured, write_captured
from mccompile.capture.run import flat_inputs, run_full
from mccompile.capture.types import CapturedModel
from mccompile.capture.verify import close
from mccompile.runtime.adapters import is_scale
from mccompile.runtime.state import built_alike


def over(
    captured: CapturedModel, model: nn.Module, other: nn.Module, calls: Sequence[Mapping[str, object]]
) -> CapturedModel | None:
    """The capture of `model` over the weights of `other`; None where that is not seen to be what a capture would give.

    calls: arguments of the forward. `other` runs each of them, and the graph must give what it gives.
    """
    if captured.opaque or not built_alike(model, other):
        return None
    try:
        data, constants = write_captured(captured, model)
    except UnwritableGraph:
        return None
    apart = {name: value.clone() for name, value in constants.items() if not is_scale(name)}  # scales are its own
    found = read_captured(data, other, apart)
    return found if all(_agrees(found, other, call) for call in calls) else None


@torch.no_grad()
def _agrees(captured: CapturedModel, model: nn.Module, call: Mapping[str, object]) -> bool:
    wanted = [x for x in pytree.tree_leaves(model(**call)) if isinstance(x, torch.Tensor)]
    made = [x for x in run_full(captured, flat_inputs(captured, call)).outputs if isinstance(x, torch.Tensor)]
    return len(made) == len(wanted) and all(close(a, b) for a, b in zip(wanted, made, strict=True))
