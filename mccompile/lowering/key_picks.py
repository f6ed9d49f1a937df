"""Attends to the window, the sink, and of the chunks between to the keys that measures of keys pick.

before: mccompile::window_attention(q_rows, k_buffer, v_buffer, ranges, spans)
after:  takes readers, worth and chosen keys instead; %chosen = mccompile::pick_keys(q_rows, k_buffer, chosen, readers,
        worth, measures); mccompile::picked_attention(q_rows, k_buffer, v_buffer, %chosen, readers); gives %chosen too
refuses when: the part attends within no window

One set of keys is picked for each reading chunk, sample and head of keys. It is picked anew by calls that compute the
chunk's last frame whole, from the queries of that frame, and it is kept for the others. So what a token reads does not
depend on which other tokens a call selects. The keys are gathered, so there is no mask, and fused attention runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as nnf

from mccompile import ir
from mccompile.capture.part import ChosenKeys, KeyWorth, Part, PerSelection
from mccompile.capture.types import Refusal
from mccompile.lowering.attention import LIBRARY, attend_groups, empty_result, picked
from mccompile.lowering.draft import Draft, Rewritten
from mccompile.lowering.windows import RANGES, SPANS, WINDOW, chunks_of, groups_of, spans_of
from mccompile.policy.bind import Reach

LIBRARY.define(
    "pick_keys(Tensor q, Tensor k, Tensor chosen, Tensor readers, Tensor worth, int[] measures, float? scale=None) "
    "-> Tensor"
)
LIBRARY.define(
    "picked_attention(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor readers, float? scale=None) -> Tensor"
)
REDUNDANCY = -1  # among the measures; those from 0 on are of attention, with so many keys around
FEWEST = 2  # places that are kept at least: compilers make constants of sizes 0 and 1
_LARGEST = 2**25  # weights of queries and keys that are held at once
_SMALL = 1e-8


# ---- which keys there are to pick, on the host ----------------------------------------------------------
def sights_of(lengths: np.ndarray, reach: Reach, frame: int) -> np.ndarray | None:
    """What each token sees where keys are picked, int64 [L, 6]; None as in `spans_of`. frame: tokens of a frame.

    Keys 0 to the first number, and from the second to the third; of those between, so many as the fourth number says,
    which stand from the fifth on among the kept places. The sixth is the first token of the chunk's last frame.
    """
    spans = spans_of(lengths, reach)
    if spans is None:
        return None
    starts, chunk = chunks_of(lengths)
    begin = starts[np.maximum(chunk - (reach.chunks + reach.keys) + 1, 0)]
    between = (spans[:, 1] > 0) & (begin > spans[:, 0])  # more chunks lie there than may be read
    spans = np.where(between[:, None], spans, np.stack((0 * lengths, 0 * lengths, lengths), 1))
    count = np.where(between, spans[:, 1] - begin, 0)
    per_chunk = count[starts]
    places = (np.cumsum(per_chunk) - per_chunk)[chunk]
    return np.column_stack((spans, count, places, lengths - np.minimum(frame, lengths - starts[chunk])))


def seen_within(lengths: np.ndarray, reach: Reach, frame: int) -> np.ndarray | None:
    """What each token sees of the keys that are within reach: as `sights_of` where some are picked, else `spans_of`."""
    return sights_of(lengths, reach, frame) if reach.keys else spans_of(lengths, reach)


def is_sight(seen: np.ndarray) -> bool:
    """Whether what tokens see is told as `sights_of` tells it."""
    return seen.ndim == 2 and seen.shape[1] == 6


def places_of(sights: np.ndarray) -> int:
    """How many places hold the picks of all chunks, of one sample and head."""
    return max(FEWEST, int((sights[:, 3] + sights[:, 4]).max()))


def readers_of(positions: np.ndarray, sights: np.ndarray) -> torch.Tensor:
    """Groups neighbouring selected rows that see the same keys. Returns int64 [groups, 8].

    A group is (first row, last row, and of its sight the first five numbers, the row at which the chunk's last frame
    begins). That row is -1 where not all of the frame is selected: then the picks that are kept hold.
    """
    return torch.from_numpy(_readers(positions, sights))


def _readers(positions: np.ndarray, sights: np.ndarray) -> np.ndarray:
    groups, seen = groups_of(positions, sights)
    asking, ends = np.searchsorted(positions, seen[:, 5]), groups[:, 1]
    different = np.cumsum(np.diff(positions, prepend=-1) != 0)  # a lone row is selected twice
    selected = different[ends - 1] - different[np.minimum(asking, ends - 1)] + (asking < ends)
    asking = np.where(selected == seen[:, 2] - seen[:, 5], asking, -1)
    return np.column_stack((groups, seen[:, :5], asking)).astype(np.int64)


def picks_anew(positions: np.ndarray, sights: np.ndarray) -> bool:
    """Whether a call that computes these tokens picks keys anew for some chunk."""
    readers = _readers(positions, sights)
    return bool(((readers[:, 5] > 0) & (readers[:, 7] >= 0)).any())


READERS = PerSelection("readers", readers_of)  # int64 [groups, 8] on the host


# ---- measures of keys -----------------------------------------------------------------------------------
def attention_given(q: torch.Tensor, k: torch.Tensor, scale: float | None) -> torch.Tensor:
    """The mean over queries [B, H, n, D] of their softmax over keys [B, H', K, D]. Returns float32 [B, H', K].

    The queries of heads that share keys count together. Few queries at a time: no matrix of all of them is held.
    """
    batch, heads, keys, width = k.shape
    asking = q.unflatten(1, (heads, -1)).flatten(2, 3)
    total = torch.zeros(batch, heads, keys, dtype=torch.float32, device=k.device)
    for some in asking.split(max(1, _LARGEST // (batch * heads * keys)), 2):
        scores = (some * (width**-0.5 if scale is None else scale)) @ k.transpose(2, 3)
        total += scores.softmax(-1, dtype=torch.float32).sum(2)
    return total / asking.size(2)


def redundancy(k: torch.Tensor) -> torch.Tensor:
    """Softmax over keys [B, H, K, D] of the mean of their cosines with the other ones. Returns float32 [B, H, K].

    The cosines of one key with all keys sum to its product with the sum of all unit keys: no matrix of pairs is made.
    Source: FlowCache, arXiv 2602.10825, and its code for SkyReels-V2.
    """
    unit = k.to(torch.float32)
    unit = unit / (unit.norm(dim=-1, keepdim=True) + _SMALL)
    others = unit.sum(2, keepdim=True) - unit
    return ((unit * others).sum(-1) / k.size(2)).softmax(-1)


def best(
    q: torch.Tensor, k: torch.Tensor, count: int, worth: Sequence[float], measures: Sequence[int], scale: float | None
) -> torch.Tensor:
    """The `count` keys of the largest sums of measures, ascending; of equal ones the first. int32 [B, H', count]."""
    score = torch.zeros(k.shape[:3], dtype=torch.float32, device=k.device)
    for factor, measure in zip(worth, measures, strict=True):
        found = redundancy(k) if measure == REDUNDANCY else attention_given(q, k, scale)
        if measure > 0:
            found = nnf.max_pool1d(found, 2 * measure + 1, 1, measure)
        score += factor * found
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(-1).values.to(torch.int32)


# ---- operators ------------------------------------------------------------------------------------------
def pick(
    q: torch.Tensor, k: torch.Tensor, chosen: torch.Tensor, readers: torch.Tensor, worth: torch.Tensor,
    measures: Sequence[int], scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """The picks [B, H', places] after a call: those of `chosen`, anew for chunks whose last frame is computed whole."""
    made = chosen.clone()
    for _, end, sink, begin, _, count, place, asking in readers.tolist():
        if count and asking >= 0:
            found = best(q[:, :, asking:end], k[:, :, sink:begin], count, worth.tolist(), measures, scale)
            made[:, :, place : place + count] = found + sink
    return made


def attend_picked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, readers: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `attend_windows`, where between the first keys and the later ones the chosen ones are read."""
    out = empty_result(q, v)
    for first, end, *seen in readers.tolist():
        keys, values = read_by(k, chosen, seen), read_by(v, chosen, seen)
        attend_groups(q[:, :, first:end], keys, values, [(0, end - first, keys.size(2))], scale, out[:, :, first:end])
    return out


def read_by(of: torch.Tensor, chosen: torch.Tensor, seen: Sequence[int]) -> torch.Tensor:
    """The keys or values [B, H, L, D] that a group reads, in their order."""
    sink, begin, stop, count, place = seen[:5]
    if not count:
        return picked(of, (sink, begin, stop))
    index = chosen[:, :, place : place + count].long().unsqueeze(-1).expand(-1, -1, -1, of.size(3))
    return torch.cat((of[:, :, :sink], of.gather(2, index), of[:, :, begin:stop]), 2)


LIBRARY.impl("pick_keys", pick, "CompositeExplicitAutograd")
torch.library.register_fake(
    "mccompile::pick_keys", lambda q, k, chosen, *_: torch.empty_like(chosen), lib=LIBRARY
)
LIBRARY.impl("picked_attention", attend_picked, "CompositeExplicitAutograd")
torch.library.register_fake("mccompile::picked_attention", lambda q, k, v, *_: empty_result(q, v), lib=LIBRARY)
PICK = torch.ops.mccompile.pick_keys.default
PICKED = torch.ops.mccompile.picked_attention.default


# ---- the pass -------------------------------------------------------------------------------------------
def measures_of(keys: ir.KeyChoice) -> tuple[int, ...]:
    """The measures of a choice, as the operator takes them."""
    return tuple(REDUNDANCY if term.measure == "redundancy" else term.around for term in keys.by.terms)


def pick_keys(part: Part, measures: tuple[int, ...]) -> Rewritten | Refusal:
    """Lets a kind's row form attend to keys that are picked."""
    draft = Draft(part)
    attending = draft.graph.find_nodes(op="call_function", target=WINDOW)
    if not attending:
        return Refusal("attention", "it is within no window")
    readers, worth = draft.take(READERS, READERS.name), draft.take(KeyWorth(), "worth")
    for node in attending:
        q, k, v, _, _, *scale = node.args
        held = ChosenKeys(draft.attentions[node].keys.name)
        before = draft.take(held, f"chosen_{held.name.replace('.', '_')}")
        with draft.graph.inserting_before(node):
            chosen = draft.graph.call_function(PICK, (q, k, before, readers, worth, list(measures), *scale))
            new = draft.graph.call_function(PICKED, (q, k, v, chosen, readers, *scale))
        draft.replace(node, new)
        draft.gives[held] = chosen
    draft.drop(RANGES)
    draft.drop(SPANS)
    return Rewritten(draft.part())
