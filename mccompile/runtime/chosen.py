"""Which keys of older chunks blocks read, where a policy picks keys: kept tensors that calls read and replace.

A pick is there before it is read: a chunk is computed whole the first time, and again after its memory was lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mccompile.capture.part import Buffer, ChosenKeys
from mccompile.capture.types import CapturedModel
from mccompile.runtime.operands import BoundPart, one_sample
from mccompile.runtime.rows import Rows
from mccompile.runtime.staging import Staging
from mccompile.runtime.store import Memory


class KeptPicks:
    """The picks of the attentions of each block, int32 [samples, heads of keys, places]."""

    def __init__(self, captured: CapturedModel, partial: Mapping[int, BoundPart]) -> None:
        self._names = {i: tuple(o for o in part.takes if isinstance(o, ChosenKeys)) for i, part in partial.items()}
        self._keys = {
            site.index: [Buffer(b.name) for b in captured.kinds[site.kind].buffers] for site in captured.blocks
        }

    def operands(self, block: int) -> tuple[ChosenKeys, ...]:
        """Those that a block takes, and gives behind its streams."""
        return self._names[block]

    def of(self, block: int, rows: Rows, store: Memory, staging: Staging | None) -> tuple[torch.Tensor, ...]:
        """The picks of a block as they are kept, for the sample of `rows`; zeros that nothing reads the first time."""
        if self._names[block] and block not in store.chosen:
            places = rows.choices.places
            store.chosen[block] = tuple(self._room(block, o, places, store, staging) for o in self._names[block])
        return tuple(one_sample(t, rows.sample, rows.batch) for t in store.chosen.get(block, ()))

    def _room(self, block: int, of: ChosenKeys, places: int, store: Memory, staging: Staging | None) -> torch.Tensor:
        keys = store.buffers[block][self._keys[block].index(Buffer(of.name))]
        made = torch.zeros(*keys.shape[:2], places, dtype=torch.int32, device=keys.device)
        return made if staging is None else staging.home(made)

    def keep(self, kept: Sequence[torch.Tensor], made: Sequence[object], rows: Rows, staging: Staging | None) -> None:
        """Keeps the picks that a block has made. kept: as `of` gives them."""
        if not kept or not rows.choices.anew:
            return
        for into, new in zip(kept, made, strict=True):
            assert isinstance(new, torch.Tensor)
            if staging is None:
                into.copy_(new)
            else:
                staging.put(into, None, None, new)
