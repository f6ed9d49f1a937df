"""Picking keys and attending to them equals its definition: for any rows, chunks, reaches and heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as nnf
from torch.utils._python_dispatch import TorchDispatchMode

from mccompile.backend import native
from mccompile.backend.native.kernel import kernel
from mccompile.language.load import load_policy
from mccompile.lowering import key_picks
from mccompile.lowering.key_picks import (
    PICK,
    PICKED,
    REDUNDANCY,
    attention_given,
    best,
    is_sight,
    measures_of,
    picks_anew,
    places_of,
    readers_of,
    redundancy,
    seen_within,
    sights_of,
)
from mccompile.lowering.windows import spans_at, spans_of
from mccompile.policy.bind import Reach
from tests.backend.test_native import table
from tests.lowering.test_windows import chunk_of, lengths_of_chunks, seen_by

MEASURES = (3, REDUNDANCY)


def picked_by_definition(q: torch.Tensor, k: torch.Tensor, weight: float, count: int) -> list[int]:
    """Which of the keys [K, D] are picked by queries [n, D]: of equal ones the first. With a matrix of all pairs."""
    asked = (q @ k.T / k.size(1) ** 0.5).softmax(-1).mean(0).tolist()
    around = [max(asked[max(0, i - 3) : i + 4]) for i in range(len(asked))]
    unit = k / (k.norm(dim=1, keepdim=True) + 1e-8)
    alike = (unit @ unit.T).fill_diagonal_(0).mean(0).softmax(0).tolist()
    score = [weight * a - (1 - weight) * r for a, r in zip(around, alike, strict=True)]
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:count])


def worth_of(weight: float) -> torch.Tensor:
    return torch.tensor([weight, weight - 1])


def natively(own_from: int) -> Callable[..., torch.Tensor]:
    """The attention of packages on the CPU, where the project's kernel is faster from so many queries on."""

    def attended(*given: torch.Tensor) -> torch.Tensor:
        with patch.object(native, "table_for", lambda width, threads: table(own_from) if kernel() else None):
            return torch.ops.mccompile.picked_attention_native(*given)

    return attended


WAYS = {"torch's": PICKED, "own kernel": natively(1), "either": natively(3)}
reaches = st.builds(Reach, st.integers(1, 3), st.integers(0, 2), st.integers(1, 3))


@settings(max_examples=20, deadline=None)
@given(
    chunks=st.integers(3, 7), frames=st.integers(1, 3), frame=st.integers(1, 5), reach=reaches, seed=st.integers(0, 99),
    heads=st.sampled_from([(1, 1), (4, 2)]), weight=st.sampled_from([0.0, 0.07, 0.5, 1.0]),
    way=st.sampled_from(sorted(WAYS)),
)  # fmt: skip
def test_any_rows_read_what_the_definition_says(
    chunks: int, frames: int, frame: int, reach: Reach, seed: int, heads: tuple[int, int], weight: float, way: str
) -> None:
    torch.manual_seed(seed)
    sizes = [frames * frame] * chunks
    lengths = lengths_of_chunks(sizes)
    sights = sights_of(lengths, reach, frame)
    assert sights is not None
    q, k, v = (torch.randn(2, lengths.size, h, 16).transpose(1, 2) for h in (heads[0], heads[1], heads[1]))
    chosen = torch.zeros(2, heads[1], places_of(sights), dtype=torch.int32)
    whole = readers_of(np.arange(lengths.size), sights)
    chosen = PICK(q, k, chosen, whole, worth_of(weight), MEASURES)
    # other keys and queries, of which only some rows are computed
    some = np.flatnonzero(np.random.default_rng(seed).random(lengths.size) < 0.8)
    rows = some if some.size else np.array([0, 0])
    before, (now, k, v) = (q, k), (torch.randn_like(t) for t in (q, k, v))
    readers = readers_of(rows, sights)
    after = PICK(now[:, :, rows], k, chosen, readers, worth_of(weight), MEASURES)
    found = WAYS[way](now[:, :, rows], k, v, after, readers)

    chunk, sharing = chunk_of(lengths), heads[0] // heads[1]
    seen = seen_by(chunk, reach).expand(2, heads[0], -1, -1).clone()
    for c in range(chunks):
        near, first = max(0, c - reach.chunks + 1) * sizes[0], min(reach.sink, c + 1) * sizes[0]
        mine, last = chunk == c, range((c + 1) * sizes[0] - frame, (c + 1) * sizes[0])
        if near - first <= reach.keys * sizes[0]:
            seen[:, :, mine, : (c + 1) * sizes[0]] = True
            continue
        anew = set(last) <= set(rows.tolist())
        asking, keys = (now, k) if anew else before
        for b, h in np.ndindex(2, heads[1]):
            own = slice(h * sharing, (h + 1) * sharing)
            queries = asking[b, own, last.start : last.stop].flatten(0, 1)
            picks = picked_by_definition(queries, keys[b, h, first:near], weight, reach.keys * sizes[0])
            for row in np.flatnonzero(mine):
                seen[b, own, row, [first + i for i in picks]] = True
    wanted = nnf.scaled_dot_product_attention(now, k, v, attn_mask=seen, enable_gqa=sharing > 1)[:, :, rows]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=7), reach=reaches, frame=st.integers(1, 6))
def test_the_places_of_chunks_lie_apart_and_hold_as_many_keys_as_the_chunks_before_the_window(
    sizes: list[int], reach: Reach, frame: int
) -> None:
    lengths = lengths_of_chunks(sizes)
    sights = sights_of(lengths, reach, frame)
    assert sights is not None
    assert sights.dtype == np.int64
    ends, taken = np.cumsum(sizes), 0
    for c, size in enumerate(sizes):
        sink, begin, stop, count, place, asking = sights[ends[c] - size].tolist()
        between = list(range(reach.sink, c - reach.chunks + 1))
        assert (stop, asking) == (ends[c], ends[c] - min(frame, size))
        assert (sights[ends[c] - size : ends[c]] == sights[ends[c] - size]).all()
        if len(between) <= reach.keys:
            assert (sink, begin, count) == (0, 0, 0)  # all of it is read
            continue
        assert count == sum(sizes[n] for n in between[-reach.keys :])
        assert (sink, begin) == (sum(sizes[: reach.sink]), ends[c - reach.chunks])
        assert place == taken
        taken += count
    assert places_of(sights) == max(2, taken)


def test_what_is_seen_within_reach_tells_whether_keys_are_picked() -> None:
    lengths = lengths_of_chunks([2, 2, 2])
    for reach in (Reach(1, 0, 1, (1.0,)), Reach(1, 1)):
        wanted = sights_of(lengths, reach, 1) if reach.keys else spans_of(lengths, reach)
        seen = seen_within(lengths, reach, 1)
        assert seen is not None
        assert np.array_equal(seen, wanted)  # type: ignore[arg-type]
        assert is_sight(seen) == bool(reach.keys)
    assert not is_sight(np.zeros(6))
    assert not is_sight(np.zeros((6, 6, 6)))
    assert not is_sight(np.zeros((6, 3)))


def test_a_window_that_picks_nothing_is_the_window() -> None:
    lengths = lengths_of_chunks([4, 4, 4, 4])
    sights = sights_of(lengths, Reach(1, 1, 2, (1.0,)), 2)
    assert sights is not None
    rows, (q, k, v) = np.arange(16), (torch.randn(1, 2, 16, 8) for _ in range(3))
    readers = readers_of(rows, sights)
    assert not picks_anew(rows, sights)
    whole = spans_of(lengths, Reach(4, 0))
    assert whole is not None
    ranges = torch.from_numpy(np.column_stack((readers[:, :2].numpy(), whole[::4])))
    wanted = torch.ops.mccompile.window_attention(q, k, v, ranges, spans_at(rows, whole))
    assert torch.equal(PICKED(q, k, v, torch.zeros(1, 2, 2, dtype=torch.int32), readers), wanted)


def test_picks_are_made_anew_where_the_last_frame_is_whole() -> None:
    sights = sights_of(lengths_of_chunks([4, 4, 4, 4]), Reach(1, 0, 1, (1.0,)), 2)
    assert sights is not None

    def asking(*rows: int) -> list[int]:
        return readers_of(np.array(rows), sights)[:, 7].tolist()

    assert asking(*range(16)) == [2, 6, 10, 14]
    assert asking(12, 14, 15) == [1]
    assert asking(12, 13, 14) == [-1]
    assert asking(9, 10, 11, 15) == [1, -1]
    assert asking(12, 13) == [-1]
    assert [picks_anew(np.array(rows), sights) for rows in ([6, 7], [10, 11], [11, 15])] == [False, True, False]
    lone = sights_of(lengths_of_chunks([1, 1, 1]), Reach(1, 0, 1, (1.0,)), 1)
    assert lone is not None
    assert readers_of(np.array([2, 2]), lone)[:, 7].tolist() == [0]  # a lone row is selected twice
    assert picks_anew(np.array([2, 2]), lone)
    frames = sights_of(lengths_of_chunks([2, 2, 2]), Reach(1, 0, 1, (1.0,)), 1)
    assert frames is not None
    assert readers_of(np.array([4]), frames)[:, 7].tolist() == [-1]  # the last frame is the token behind it


def test_the_last_frame_alone_picks_anew() -> None:
    torch.manual_seed(0)
    sights = sights_of(lengths_of_chunks([4, 4, 4]), Reach(1, 0, 1, (1.0,)), 2)
    assert sights is not None
    q, k = torch.randn(1, 1, 12, 8), torch.randn(1, 1, 12, 8)
    rows = np.array([10, 11])
    found = PICK(
        q[:, :, rows], k, -torch.ones(1, 1, 4, dtype=torch.int32), readers_of(rows, sights), worth_of(0.5), MEASURES
    )
    assert found[0, 0].tolist() == picked_by_definition(q[0, 0, rows], k[0, 0, :8], 0.5, 4)


def test_measures_of_keys_are_those_of_the_definition_however_few_queries_count_at_once() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 30, 16)
    k[:, :, 7:9] = 0  # has no direction
    k[:, :, 8, 0] = 1e-8  # has hardly one
    with patch.object(key_picks, "_LARGEST", 2 * 2 * 30 * 5):
        few = attention_given(q, k, 0.3)
    by_pairs = (q.unflatten(1, (2, 2)).flatten(2, 3) @ k.transpose(2, 3) * 0.3).softmax(-1).mean(2)
    torch.testing.assert_close(few, by_pairs)
    torch.testing.assert_close(few.sum(-1), torch.ones(2, 2))
    unit = k / (k.norm(dim=-1, keepdim=True) + 1e-8)
    cosines = unit @ unit.transpose(2, 3)
    cosines.diagonal(dim1=2, dim2=3).zero_()
    torch.testing.assert_close(redundancy(k), cosines.mean(2).softmax(-1))


def test_of_equal_keys_the_first_are_picked() -> None:
    q, k = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 1, 8).expand(1, 1, 40, 8)
    assert best(q, k, 5, [0.5, -0.5], MEASURES, None).tolist() == [[[0, 1, 2, 3, 4]]]


@pytest.mark.parametrize(("around", "picks"), [(0, [0, 1, 3]), (1, [2, 3, 4])])
def test_keys_beside_a_large_one_are_worth_as_much(around: int, picks: list[int]) -> None:
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([0.0, 0.0, 0.0, 9.0, 0.0]).reshape(1, 1, 5, 1)
    assert best(q, k, 3, [1.0], [around], None).tolist() == [[picks]]


class Products(TorchDispatchMode):
    """Sees how many weights of queries and keys are made at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._softmax.default:
            self.sizes.append(found.numel())
        return found


@pytest.mark.parametrize(("largest", "sizes"), [(1, [60] * 9), (60 * 4, [240, 240, 60]), (10**6, [540])])
def test_few_queries_at_a_time_are_held_against_all_keys(largest: int, sizes: list[int]) -> None:
    q, k = torch.randn(2, 3, 9, 4), torch.randn(2, 3, 10, 4)
    with patch.object(key_picks, "_LARGEST", largest), Products() as products:
        attention_given(q, k, None)
    assert products.sizes == sizes


def test_what_measures_count_must_be_told() -> None:
    sights = sights_of(lengths_of_chunks([4, 4, 4]), Reach(1, 0, 1, (1.0,)), 2)
    assert sights is not None
    q = torch.randn(1, 1, 12, 8)
    chosen, readers = torch.zeros(1, 1, places_of(sights), dtype=torch.int32), readers_of(np.arange(12), sights)
    with pytest.raises(ValueError, match="zip"):
        PICK(q, q, chosen, readers, torch.zeros(0), MEASURES)


def test_layouts_are_those_that_compilers_are_told() -> None:
    sights = sights_of(lengths_of_chunks([4, 4, 4]), Reach(1, 0, 1, (1.0,)), 2)
    assert sights is not None
    q, k, v = torch.randn(2, 4, 12, 16), torch.randn(2, 2, 12, 16), torch.randn(2, 2, 12, 16)
    chosen, readers = torch.zeros(2, 2, places_of(sights), dtype=torch.int32), readers_of(np.arange(12), sights)
    picks = q, k, chosen, readers, worth_of(0.5)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in picks]
        fake = PICK(*fakes, MEASURES)
        out = PICKED(fakes[0], fakes[1], mode.from_tensor(v), fake, fakes[3])
    found = PICK(*picks, MEASURES)
    assert (found.shape, found.stride(), found.dtype) == (fake.shape, fake.stride(), fake.dtype)
    for way in WAYS.values():
        attended = way(q, k, v, found, readers)
        assert (attended.shape, attended.stride()) == (out.shape, out.stride())


def test_measures_are_told_by_numbers() -> None:
    policy = load_policy(
        """policy p {
          phase all { compute }
          signal asked = attention(key) - dilate(attention(key), 4)
          cache { window: 1 chunks  keys: top 1 chunks by asked + 2 * redundancy(key) }
        }"""
    )
    assert policy.cache.keys is not None
    assert measures_of(policy.cache.keys) == (0, 4, REDUNDANCY)
