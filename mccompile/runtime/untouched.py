"""Whether nobody has touched a model since the last look: a quick answer, by identities and version counters alone.

"No" means only that something may be different; `state.py` then says what. Every step of a run with a callback asks, so
this takes about a millisecond for 1,000 modules.
"""

from __future__ import annotations

from itertools import chain
from operator import is_

import numpy as np
import torch
from torch import nn

from mccompile.runtime.reached import DEEPEST, attributes_of, is_data, told
from mccompile.runtime.settings import PROCESSOR, bases_of


class Untouched:
    """A model as it stands: the objects that its modules hold, and the versions and places of its tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._dicts: list[dict[object, object]] = []
        self._lists: list[list[object]] = []
        self._arrays: list[np.ndarray] = []
        self._known = {id(module) for module in model.modules()}  # and the dictionaries and lists that were seen
        self._typed: list[object] = []  # whose class may be exchanged
        for module in model.modules():
            own = vars(module)
            self._add(own)
            processor = own.get(PROCESSOR)
            self._add(attributes_of(processor))
            self._typed += (module, processor)
        self._types = [*map(type, self._typed)]
        self._code = [vars(kind) for kind in {base for kind in set(self._types) for base in bases_of(kind)}]
        self._empty = [d for d in self._dicts if not d]
        self._dicts = [d for d in self._dicts if d]
        self._held = self._holds()
        tensors = [value for value in self._held if isinstance(value, torch.Tensor)]
        self._counting = [tensor for tensor in tensors if not tensor.is_inference()]
        self._placed = [tensor for tensor in tensors if type(tensor) in (torch.Tensor, nn.Parameter)]
        self._facts = self._told()

    def _add(self, held: object, deep: int = DEEPEST + 2) -> None:
        """A dictionary, a list or an object that holds data, and those inside."""
        if isinstance(held, np.ndarray):
            self._arrays.append(held)
        held = vars(held) if is_data(held) or (isinstance(held, nn.Module) and id(held) not in self._known) else held
        if not isinstance(held, dict | list | tuple) or id(held) in self._known or not deep:
            return
        self._known.add(id(held))
        if isinstance(held, dict):
            self._dicts.append(held)
        elif isinstance(held, list):
            self._lists.append(held)
        for value in held.values() if isinstance(held, dict) else held:
            self._add(value, deep - 1)

    def still(self) -> bool:
        """Says whether everything is as it was."""
        now = self._holds()
        if any(map(len, self._empty)) or not all(map(is_, map(type, self._typed), self._types)):
            return False
        return len(now) == len(self._held) and all(map(is_, now, self._held)) and self._told() == self._facts

    def _holds(self) -> list[object]:
        dicts, code = map(dict.values, self._dicts), (own.values() for own in self._code)
        return [*chain.from_iterable(dicts), *chain.from_iterable(self._lists), *chain.from_iterable(code)]

    def _told(self) -> tuple[list[int], list[tuple[object, ...]], list[object]]:
        lying: list[tuple[object, ...]] = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in self._placed]
        return [t._version for t in self._counting], lying, [told(array) for array in self._arrays]
