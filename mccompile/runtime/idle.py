"""Arguments of a call that are not as they were recorded, and change nothing that the model computes.

Whether they do is asked of the model: it runs the very call with them, and with the recorded ones in their place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import renewed
from mccompile.capture.types import CapturedModel


class IdleArguments:
    """What is known of the arguments of one model that no captured graph reads."""

    def __init__(self, model: nn.Module, captured: CapturedModel) -> None:
        self._model = model
        constants = dict(captured.constants)
        names = [node.name for node in captured.module.graph.find_nodes(op="placeholder")]
        _, self._recorded = pytree.tree_unflatten([constants.get(n, _VARIES) for n in names], captured.in_spec)
        self._idle: dict[str, bool] = {}  # by values that came: whether the model gives the same with them

    def without(self, call: Mapping[str, object]) -> dict[str, object] | None:
        """The call as it was recorded; None where that is another call to the model, or no other call at all.

        Runs the model twice where arguments of these values come for the first time.
        """
        odd = {name: value for name, value in call.items() if self._differs(name, value)}
        if not odd:
            return None
        plain = {name: self._recorded.get(name) if name in odd else value for name, value in call.items()}
        key = repr(sorted(odd.items()))
        if key not in self._idle:
            own = (pytree.tree_map_only(torch.Tensor, torch.clone, renewed(one)) for one in (call, plain))
            self._idle[key] = _alike(*(self._model(**one) for one in own))  # which may write into its arguments
        return plain if self._idle[key] else None

    def forget(self) -> None:
        """Asks the model anew: its weights are others."""
        self._idle.clear()

    def _differs(self, name: str, value: object) -> bool:
        """An argument of plain values that the graph holds as constants, or does not have, and that are other ones."""
        recorded = self._recorded.get(name)
        leaves = (*pytree.tree_leaves(recorded), *pytree.tree_leaves(value))
        if any(isinstance(leaf, torch.Tensor) or leaf is _VARIES for leaf in leaves):
            return False
        return bool(value != recorded)


def _alike(one: object, other: object) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


_VARIES = object()
