"""Attends to the keys of the last chunks, and of the first ones, where the policy has a window.

before: mccompile::prefix_attention(q_rows, k_buffer, v_buffer, bounds, seen)
after:  takes ranges and spans instead; mccompile::window_attention(q_rows, k_buffer, v_buffer, ranges, spans)
refuses when: the part attends over no prefixes

A chunk is what attention tells apart: the tokens that see equally many keys, where these end with their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mccompile.capture.part import Part, PerSelection
from mccompile.capture.types import CapturedModel, Refusal
from mccompile.lowering.draft import Draft, Rewritten
from mccompile.lowering.prefixes import BOUNDS, SEEN
from mccompile.policy.bind import Reach

PREFIX = torch.ops.mccompile.prefix_attention.default
WINDOW = torch.ops.mccompile.window_attention.default


def spans_of(lengths: np.ndarray, reach: Reach) -> np.ndarray | None:
    """What each token sees under a window, int64 [L, 3]: keys 0 to the first number, and from the second to the third.

    lengths: how many keys each token may see, int64 [L]. None where the keys that some tokens see do not end with these
    tokens: such a mask has no chunks.
    """
    stops = np.unique(lengths)
    starts, chunk = chunks_of(lengths)
    if stops[-1] != lengths.size or not np.array_equal(stops[chunk], lengths):
        return None
    first = starts[np.maximum(chunk - reach.chunks + 1, 0)]
    sink = int(stops[min(reach.sink, stops.size) - 1]) if reach.sink else 0
    apart = first > sink
    return np.stack((np.where(apart, sink, 0), np.where(apart, first, 0), lengths), 1)


def chunks_of(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first token of each chunk, and the chunk of each token, by how many keys tokens may see, int64 [L]."""
    stops = np.unique(lengths)
    return np.concatenate(([0], stops[:-1])), np.searchsorted(stops, np.arange(lengths.size), "right")


def groups_of(positions: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups of neighbouring selected rows that see the same keys, int64 [groups, 2], and what each group sees."""
    seen = spans[positions]
    edges = np.flatnonzero((np.diff(seen, axis=0) != 0).any(1)) + 1
    starts, stops = np.concatenate(([0], edges)), np.concatenate((edges, [positions.size]))
    return np.column_stack((starts, stops)), seen[starts]


def ranges_of(positions: np.ndarray, spans: np.ndarray) -> torch.Tensor:
    """Groups neighbouring selected rows that see the same keys. Returns int64 [groups, 5]."""
    return torch.from_numpy(np.column_stack(groups_of(positions, spans)).astype(np.int64))


def spans_at(positions: np.ndarray, spans: np.ndarray) -> torch.Tensor:
    """What each selected row sees. Returns int32 [n, 3]."""
    return torch.from_numpy(spans[positions].astype(np.int32))


RANGES = PerSelection("ranges", ranges_of)  # int64 [groups, 5] on the host
SPANS = PerSelection("spans", spans_at, on_device=True)  # int32 [n, 3]


def use_windows(part: Part, setting: None) -> Rewritten | Refusal:
    """Lets a kind's row form attend within a window."""
    draft = Draft(part)
    attending = draft.graph.find_nodes(op="call_function", target=PREFIX)
    if not attending:
        return Refusal("attention", "it is over no prefixes of the keys")
    ranges, spans = draft.take(RANGES, RANGES.name), draft.take(SPANS, SPANS.name)
    for node in attending:
        q, k, v, _, _, *scale = node.args
        with draft.graph.inserting_before(node):
            new = draft.graph.call_function(WINDOW, (q, k, v, ranges, spans, *scale))
        draft.replace(node, new)
    draft.drop(BOUNDS)
    draft.drop(SEEN)
    return Rewritten(draft.part())


def outside_windows(captured: CapturedModel, rows: Sequence[Part]) -> str:
    """Why a window does not hold for all attention of a model; "" where it does. rows: the row forms of its kinds."""
    if not rows:
        return next((r.reason for r in captured.refusals), "its tokens cannot be computed one by one")
    sites = [(site, {n.name: n for n in part.graph.nodes}[site.node]) for part in rows for site in part.attentions]
    within = "window_attention", "picked_attention"
    whole = next((site for site, node in sites if node.target._opname not in within), None)
    if whole is None:
        return "" if sites else "none of its blocks attends"
    if whole.mask is None:
        return f"in `{whole.path}` every token sees all tokens"
    if any(p.depends for p in captured.shared if p.name == whole.mask.name):
        return f"an input of each call says which keys `{whole.path}` reads, so the caller has a window of its own"
    return f"the mask of `{whole.path}` is not known to hide later chunks and nothing else"
