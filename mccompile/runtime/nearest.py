"""Which computed token each other token is most like, and how like tokens are to the anchors of their chunk.

Both are cosines of a source, in float32. The products are made in pieces, so that their memory has a bound whatever the
size of a chunk. The host knows all sizes and positions: it waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mccompile.runtime.upload import upload

AT_ONCE = 2**24  # cosines that are there at a time: 64 MiB
EPS = 1e-8  # of a token that is 0


@dataclass(frozen=True, slots=True)
class Filling:
    """Which tokens have results in a call, and whose.

    filled: these tokens, int64 [A] ascending: those of all chunks of which some are computed. taken: for each of them
    the place among the computed tokens of the one whose results it has, int64 [samples, A]; its own if it is computed.
    """

    filled: torch.Tensor
    taken: torch.Tensor


def own_results(index: torch.Tensor, samples: int) -> Filling:
    """The filling in which all tokens with results are computed, those of `index`."""
    return Filling(index, torch.arange(index.numel(), device=index.device).repeat(samples, 1))


def give_results(filling: Filling, into: torch.Tensor, made: torch.Tensor, axis: int, add: bool) -> None:
    """Writes the rows of `made` that tokens take into `into`, which has all tokens along `axis`; adds them if `add`."""
    index = filling.taken.view(-1, *(filling.filled.numel() if d == axis else 1 for d in range(1, made.dim())))
    given = torch.take_along_dim(made, index, axis)
    into.index_copy_(axis, filling.filled, into.index_select(axis, filling.filled) + given if add else given)


@dataclass(frozen=True, slots=True)
class Likeness:
    """The tokens of a call by the source that they are compared by, of length 1 each, [B, G, tokens, C] float32."""

    tokens: torch.Tensor

    @classmethod
    def of(cls, cells: torch.Tensor) -> Likeness:
        """cells: the source, [B, G, F, P, C]."""
        return cls(unit(cells).flatten(2, 3))

    def filling(self, positions: np.ndarray, index: torch.Tensor, sample: int | None) -> Filling:
        """Whose results the tokens of one sample have, or of all that select the same.

        positions: of the computed tokens, ascending, at least one. index: the same on the device.
        """
        tokens = self.tokens if sample is None else self.tokens[sample : sample + 1]
        samples, chunks, size, _ = tokens.shape
        bounds = np.searchsorted(positions, np.arange(chunks + 1) * size)
        some = np.flatnonzero(np.diff(bounds))
        filled = (some[:, None] * size + np.arange(size)).ravel()
        filled = np.repeat(filled, 2) if filled.size == 1 else filled  # as the positions of a lone token are
        own = np.searchsorted(positions, filled)
        others = np.flatnonzero(positions[np.minimum(own, positions.size - 1)] != filled)
        taken = upload(own, index.device).repeat(samples, 1)
        at = upload(others, index.device)
        seen = 0
        for chunk in some:
            first, last = int(bounds[chunk]), int(bounds[chunk + 1])
            count = size - np.unique(positions[first:last]).size
            if count:
                places = at[seen : seen + count]
                lacking = upload(filled[others[seen : seen + count]] - chunk * size, index.device)
                among = tokens[:, chunk].index_select(1, index[first:last] - chunk * size)
                best = _products(tokens[:, chunk].index_select(1, lacking), among)
                taken.index_copy_(1, places, torch.cat([one.argmax(-1) for one in best], 1) + first)
            seen += count
        return Filling(upload(filled, index.device), taken)


def similarity(cells: torch.Tensor, rows: int, stride: int) -> torch.Tensor:
    """ir.Similarity of a source [B, G, F, P, C] in frames of so many rows, as [B, G, F, P]."""
    grid = unit(cells).unflatten(3, (rows, -1))
    anchors = grid[:, :, :, ::stride, ::stride].flatten(0, 1).flatten(1, 3)
    largest = [one.amax(-1) for one in _products(grid.flatten(0, 1).flatten(1, 3), anchors)]
    found = torch.cat(largest, 1).clamp(-1.0, 1.0).view(grid.shape[:-1])
    found[:, :, :, ::stride, ::stride] = -1.0
    return found.flatten(3)


def unit(value: torch.Tensor) -> torch.Tensor:
    """The tokens of a source, whose numbers lie along the last axis, at length 1 in float32."""
    value = value.float()
    return value / torch.linalg.vector_norm(value, dim=-1, keepdim=True).clamp_min(EPS)


def _products(left: torch.Tensor, right: torch.Tensor) -> Iterator[torch.Tensor]:
    """left [n, L, C] times right [n, R, C] as [n, piece, R], piece by piece of the rows of `left`."""
    at_once = max(1, AT_ONCE // (right.size(0) * right.size(1)))
    return (torch.bmm(one, right.transpose(1, 2)) for one in left.split(at_once, 1))
