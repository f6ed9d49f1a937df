"""Keys and values of clean chunks, kept as long as a later chunk may still attend to them."""

from __future__ import annotations

import torch
from torch import Tensor

from mccompile.models.magi.config import MagiModelConfig
from mccompile.models.magi.transformer import KeyValues


def no_keys(config: MagiModelConfig, batch: int, like: Tensor, dtype: torch.dtype, rows: int = 0) -> KeyValues:
    """K/V of no chunk: with it every call of the transformer has the same arguments, cached chunks or not.

    rows: how many rows of zeros stand in their place, for callers whose key ranges begin after them.
    """
    shape = (batch, rows, config.num_query_groups, config.kv_channels)
    empty = torch.zeros(shape, dtype=dtype, device=like.device)
    return ((empty, empty),) * config.num_layers


class CleanChunkCache:
    """A run of consecutive clean chunks, oldest first; rows are chunk_tokens per chunk. One per generation."""

    def __init__(self, chunk_tokens: int) -> None:
        self.chunk_tokens = chunk_tokens
        self.first = 0  # number of the oldest chunk kept
        self.end = 0  # one past the newest
        self._layers: KeyValues = ()

    def append(self, chunks: tuple[int, ...], layers: KeyValues) -> None:
        """Adds the K/V of `chunks`, which must follow those already here."""
        if not chunks or chunks[0] != self.end:
            raise ValueError(f"chunks {chunks} do not follow chunk {self.end - 1}")
        if self._layers:
            layers = tuple(
                (torch.cat((old_k, k), dim=1), torch.cat((old_v, v), dim=1))
                for (old_k, old_v), (k, v) in zip(self._layers, layers, strict=True)
            )
        self._layers, self.end = layers, chunks[-1] + 1

    def drop_before(self, chunk: int) -> None:
        """Forgets chunks that nothing attends to any more."""
        kept = max(self.first, min(chunk, self.end))
        if kept == self.first:
            return
        # Copies: views would keep the rows that are dropped.
        left = self.window(kept, self.end) or ()
        self._layers = tuple((k.clone(), v.clone()) for k, v in left)
        self.first = kept

    def window(self, first: int, end: int) -> KeyValues | None:
        """K/V of chunks [first, end), or None when that is empty. Raises ValueError for chunks that are not here."""
        if first >= end:
            return None
        if first < self.first or end > self.end:
            raise ValueError(f"chunks [{first}, {end}) asked for, [{self.first}, {self.end}) kept")
        rows = slice((first - self.first) * self.chunk_tokens, (end - self.first) * self.chunk_tokens)
        return tuple((k[:, rows], v[:, rows]) for k, v in self._layers)
