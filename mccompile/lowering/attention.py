"""The operators for attention without a mask, and the proof, for each shape, that a mask selects prefixes of the keys.

A selection is told twice. `bounds` is int64 [groups, 3] on the host: query rows bounds[i, 0] to bounds[i, 1] attend to
keys 0 to bounds[i, 2]. `seen` is int32 [n] on the device of the rows: row i attends to keys 0 to seen[i]. Kernels that
are called group by group read the bounds, those that take all rows at once read the other (backend/rows). Under a
window (windows.py) the same is told by `ranges`, int64 [groups, 5], and `spans`, int32 [n, 3].
Without a dense mask, flash kernels apply. Masked keys are never read; over a causal run they are about half of all
keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as nnf

from mccompile.lowering.repeated import LARGEST, Repeated

LIBRARY = torch.library.Library("mccompile", "DEF")
LIBRARY.define(
    "prefix_attention(Tensor q, Tensor k, Tensor v, Tensor bounds, Tensor seen, float? scale=None) -> Tensor"
)
LIBRARY.define(
    "window_attention(Tensor q, Tensor k, Tensor v, Tensor ranges, Tensor spans, float? scale=None) -> Tensor"
)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """Attends from q [B, H, n, D] to k and v [B, H, L, D]. Returns [B, H, n, D], a view of [B, n, H, D].

    Groups are run one after the other. Heads are shared as in SDPA. The layout is part of the contract: compiled code
    reads the result by the strides of `empty_result`.
    """
    gqa = q.size(1) != k.size(1)
    groups = bounds.tolist()
    if len(groups) == 1:
        stop = groups[0][2]
        out = nnf.scaled_dot_product_attention(q, k[:, :, :stop], v[:, :, :stop], scale=scale, enable_gqa=gqa)
        return out.transpose(1, 2).contiguous().transpose(1, 2)
    out = empty_result(q, v)
    attend_groups(q, k, v, groups, scale, out)
    return out


def attend_groups(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: Sequence[Sequence[int]], scale: float | None,
    out: torch.Tensor,
) -> None:
    """Writes the rows of `out` [B, H, n, D], group by group. A group is (first row, last row, keys)."""
    gqa = q.size(1) != k.size(1)
    for first, end, stop in groups:
        keys, values = k[:, :, :stop], v[:, :, :stop]
        out[:, :, first:end] = nnf.scaled_dot_product_attention(
            q[:, :, first:end], keys, values, scale=scale, enable_gqa=gqa
        )


def empty_result(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Returns an empty tensor with the shape and the strides of the result of `attend`."""
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]).transpose(1, 2)


def attend_windows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ranges: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """As `attend`, where the keys of a group are the first ones and later ones: int64 [groups, 5] on the host.

    Query rows ranges[i, 0] to ranges[i, 1] attend to keys 0 to ranges[i, 2] and ranges[i, 3] to ranges[i, 4].
    """
    out = empty_result(q, v)
    for first, end, *seen in ranges.tolist():
        keys, values = picked(k, seen), picked(v, seen)
        attend_groups(q[:, :, first:end], keys, values, [(0, end - first, keys.size(2))], scale, out[:, :, first:end])
    return out


def picked(of: torch.Tensor, seen: Sequence[int]) -> torch.Tensor:
    """The keys or values [B, H, L, D] that a group sees; a copy only where they do not lie together."""
    sink, first, stop = seen
    later = of[:, :, first:stop]
    return later if sink == 0 else torch.cat((of[:, :, :sink], later), 2)


def _attend_by_groups(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, seen: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    return attend(q, k, v, bounds, scale)


def _attend_windows_by_groups(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ranges: torch.Tensor, spans: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    return attend_windows(q, k, v, ranges, scale)


LIBRARY.impl("prefix_attention", _attend_by_groups, "CompositeExplicitAutograd")
torch.library.register_fake("mccompile::prefix_attention", lambda q, k, v, *_: empty_result(q, v), lib=LIBRARY)
LIBRARY.impl("window_attention", _attend_windows_by_groups, "CompositeExplicitAutograd")
torch.library.register_fake("mccompile::window_attention", lambda q, k, v, *_: empty_result(q, v), lib=LIBRARY)


def prefix_lengths(mask: torch.Tensor | Repeated) -> np.ndarray | None:
    """Returns how many keys each query row sees, or None if a row sees others than the first ones.

    mask: bool [..., L, K] (True = attend) or additive float (0 = attend, large negative = not). It is the same for
    all samples and heads. Of a mask that repeats, each different row is looked at once.
    """
    mask = mask if isinstance(mask, Repeated) else Repeated.of(mask)
    flat = mask.once.reshape(-1, *mask.once.shape[-2:])
    if not bool((flat == flat[:1]).all()):
        return None
    rows = Repeated(flat[0], mask.places[-2:])
    found: list[torch.Tensor] = []
    at_once = max(1, LARGEST // max(rows.shape[1], 1))
    for start in range(0, flat.size(1), at_once):
        part = Repeated(rows.once[start : start + at_once], rows.places).whole((1,))
        allowed = part if part.dtype == torch.bool else part > -1e4
        lengths = allowed.sum(-1)
        if not torch.equal(allowed, torch.arange(part.size(1), device=part.device) < lengths[:, None]):
            return None
        if part.dtype != torch.bool and bool((part[allowed] != 0).any()):
            return None
        found.append(lengths)
    lengths = torch.cat(found)[rows.places[0]]
    return lengths.cpu().numpy() if bool((lengths > 0).all()) else None


def bounds_of(positions: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Groups neighbouring selected rows that see equally many keys. Returns int64 [groups, 3]."""
    seen = lengths[positions]
    edges = np.flatnonzero(np.diff(seen)) + 1
    starts = np.concatenate(([0], edges))
    stops = np.concatenate((edges, [positions.size]))
    return torch.from_numpy(np.stack((starts, stops, seen[starts]), 1).astype(np.int64))


def seen_of(positions: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """How many keys each selected row sees. Returns int32 [n]."""
    return torch.from_numpy(lengths[positions].astype(np.int32))
