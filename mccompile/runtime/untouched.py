"""Whether nobody has touched a model since the last look: a quick answer, by identities and version counters alone.

"No" means only that something may be different; `state.py` then says what. Every step of a run with a callback asks, so
this takes about a millisecond for 1,000 modules.
"""

from __future__ import annotations

from itertools import chain
from operator import is_

import torch
from torch import nn


class Untouched:
    """A model as it stands: the objects that its modules hold, and the versions and places of its tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._dicts: list[dict[object, object]] = []
        self._lists: list[list[object]] = []
        for module in model.modules():
            own: dict[object, object] = vars(module)
            self._dicts += (own, *(value for value in own.values() if isinstance(value, dict)))
            self._lists += (value for value in own.values() if isinstance(value, list))
        self._empty = [d for d in self._dicts if not d]
        self._dicts = [d for d in self._dicts if d]
        self._held = self._holds()
        tensors = [value for value in self._held if isinstance(value, torch.Tensor)]
        self._counting = [tensor for tensor in tensors if not tensor.is_inference()]
        self._placed = [tensor for tensor in tensors if type(tensor) in (torch.Tensor, nn.Parameter)]
        self._facts = self._told()

    def still(self) -> bool:
        """Says whether everything is as it was."""
        now = self._holds()
        if any(map(len, self._empty)):
            return False
        return len(now) == len(self._held) and all(map(is_, now, self._held)) and self._told() == self._facts

    def _holds(self) -> list[object]:
        return [*chain.from_iterable(map(dict.values, self._dicts)), *chain.from_iterable(self._lists)]

    def _told(self) -> tuple[list[int], list[tuple[object, ...]]]:
        lying: list[tuple[object, ...]] = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in self._placed]
        return [t._version for t in self._counting], lying
