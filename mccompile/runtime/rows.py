"""The selected tokens of a call, and what blocks need to know of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from mccompile.backend.role import Value
from mccompile.capture.part import Filled, TakenFrom
from mccompile.policy.bind import Reach
from mccompile.runtime.nearest import Filling

NO_WORTH = torch.zeros(0)
"""What measures of keys count where none are asked for: the operator that picks keys refuses it."""


@dataclass(frozen=True, slots=True)
class KeyChoices:
    """worth: what measures of keys count. places: how many hold the picks of all chunks. anew: some are made now."""

    worth: torch.Tensor
    places: int
    anew: bool


@dataclass(frozen=True, slots=True)
class Rows:
    """Selected tokens of a call, and what blocks need of the shared values for them.

    sample: the sample that they belong to, None where all samples select the same. whole: all tokens, in order.
    index: int64 [n]. made: what passes need to know of the selection. values: rows of shared values. sources: values
    from which blocks pick rows themselves. picks: which rows, by the shared value for which they are picked. vectors:
    per row key, positions along that axis. filling: which tokens have results, and whose, if tokens take from others.
    choice: how keys are picked, where they are.
    """

    sample: int | None
    batch: int
    whole: bool
    index: torch.Tensor
    made: Mapping[str, torch.Tensor]
    values: Mapping[str, Value]
    sources: Mapping[str, Value]
    vectors: Mapping[str, torch.Tensor]
    picks: Mapping[str, Value]
    filling: Filling | None = None
    choice: KeyChoices | None = None

    @property
    def choices(self) -> KeyChoices:
        """How keys are picked, in a model that picks some."""
        assert self.choice is not None
        return self.choice

    def told(self, operand: Filled | TakenFrom) -> torch.Tensor:
        """What a block takes of the filling."""
        assert self.filling is not None
        return self.filling.filled if isinstance(operand, Filled) else self.filling.taken

    def written(self, key: str) -> torch.Tensor:
        """The positions along an axis of these rows whose keys and values blocks write."""
        return self.vectors[key] if self.filling is None or key != "video" else self.filling.filled


def worth_of(reach: Reach | None) -> torch.Tensor:
    """What measures of keys count under a policy, as blocks take it."""
    return NO_WORTH if reach is None else torch.tensor(reach.worth, dtype=torch.float32)


FindFilling: TypeAlias = Callable[[np.ndarray, torch.Tensor, int | None], Filling]
"""Whose results the tokens of a sample have, or of all: from the positions of the computed ones, here and there."""
