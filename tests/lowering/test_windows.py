"""Attention within a window equals SDPA under the dense mask of its definition, for any rows and any chunks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as nnf

from mccompile.backend import native
from mccompile.backend.native.kernel import kernel
from mccompile.capture.types import CapturedModel, Refusal
from mccompile.lowering.attention import attend, bounds_of
from mccompile.lowering.key_picks import READERS, pick_keys
from mccompile.lowering.prefixes import BOUNDS, SEEN
from mccompile.lowering.windows import RANGES, SPANS, outside_windows, ranges_of, spans_at, spans_of, use_windows
from mccompile.policy.bind import Reach
from tests.backend.test_native import table
from tests.lowering.refusing import X, attending, masked, over_prefixes, scaling, within_a_window
from tests.lowering.test_small_parts import rewritten

OP, NATIVE = torch.ops.mccompile.window_attention, torch.ops.mccompile.window_attention_native


def natively(own_from: int) -> Callable[..., torch.Tensor]:
    """The attention of packages on the CPU, where the project's kernel is faster from so many queries on."""

    def attended(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ranges: torch.Tensor, spans: torch.Tensor
    ) -> torch.Tensor:
        with patch.object(native, "table_for", lambda width, threads: table(own_from) if kernel() else None):
            return NATIVE(q, k, v, ranges)

    return attended


WAYS = {"groups": OP, "own kernel": natively(1), "torch's": natively(10**6), "either": natively(3)}


def seen_by(chunk: np.ndarray, reach: Reach) -> torch.Tensor:
    """What tokens of these chunks see of each other, bool [L, L], by the definition."""
    row, key = chunk[:, None], chunk[None, :]
    return torch.from_numpy((key <= row) & ((key > row - reach.chunks) | (key < reach.sink)))


def lengths_of_chunks(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.cumsum(sizes), sizes).astype(np.int64)


def chunk_of(lengths: np.ndarray) -> np.ndarray:
    return np.unique(lengths, return_inverse=True)[1]


reaches = st.builds(Reach, st.integers(1, 6), st.integers(0, 6))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), reach=reaches, seed=st.integers(0, 99),
    heads=st.sampled_from([(1, 1), (4, 2)]),
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_any_rows_are_those_of_attention_under_the_dense_mask(
    way: Callable[..., torch.Tensor], sizes: list[int], reach: Reach, seed: int, heads: tuple[int, int]
) -> None:
    torch.manual_seed(seed)
    lengths = lengths_of_chunks(sizes)
    chosen = np.flatnonzero(np.random.default_rng(seed).random(lengths.size) < 0.5)
    rows = chosen if chosen.size else np.array([0])
    dense = seen_by(chunk_of(lengths), reach)
    q, k, v = (torch.randn(2, lengths.size, h, 16).transpose(1, 2) for h in (heads[0], heads[1], heads[1]))
    spans = spans_of(lengths, reach)
    assert spans is not None
    found = way(q[:, :, rows], k, v, ranges_of(rows, spans), spans_at(rows, spans))
    grouped = heads[0] != heads[1]
    wanted = nnf.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=grouped)[:, :, rows]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), reach=reaches)
def test_spans_and_ranges_say_what_the_definition_says(sizes: list[int], reach: Reach) -> None:
    lengths = lengths_of_chunks(sizes)
    spans = spans_of(lengths, reach)
    assert spans is not None
    key = np.arange(lengths.size)
    told = (key < spans[:, :1]) | ((key >= spans[:, 1:2]) & (key < spans[:, 2:]))
    assert np.array_equal(told, seen_by(chunk_of(lengths), reach).numpy())
    assert (spans[:, 0] <= spans[:, 1]).all()  # no key is read twice
    grouped = np.concatenate([np.tile(r[2:], (r[1] - r[0], 1)) for r in ranges_of(key, spans).tolist()])
    assert np.array_equal(grouped, spans)


def test_what_lies_together_is_one_slice_and_one_group() -> None:
    lengths = lengths_of_chunks([4, 4, 4])
    whole, near = spans_of(lengths, Reach(3, 0)), spans_of(lengths, Reach(1, 2))
    assert whole is not None
    assert near is not None
    assert ranges_of(np.arange(12), near).tolist() == [[0, 4, 0, 0, 4], [4, 8, 0, 0, 8], [8, 12, 0, 0, 12]]
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 12, 8) for _ in range(3))
    rows = np.arange(12)
    found = OP(q, k, v, ranges_of(rows, whole), spans_at(rows, whole))
    assert torch.equal(found, attend(q, k, v, bounds_of(rows, lengths)))


@pytest.mark.parametrize(
    "lengths",
    [
        [8, 8, 8, 8, 12, 12, 12, 12],  # a key more than there are tokens
        [4, 4, 4, 4, 4, 4],  # later tokens that do not see themselves
        [5, 5, 5, 5, 8, 8, 8, 8],  # a token that sees beyond its chunk
        [4, 8, 4, 8, 4, 8, 8, 8],
    ],
)
def test_prefixes_that_are_no_chunks_are_not_taken_for_some(lengths: list[int]) -> None:
    assert spans_of(np.array(lengths), Reach(1, 0)) is None


@pytest.mark.parametrize("rows", [[5, 5], [0, 1, 5, 11], list(range(12))])
def test_the_layout_is_the_one_that_compilers_are_told(rows: list[int]) -> None:
    spans = spans_of(lengths_of_chunks([4, 4, 4]), Reach(1, 1))
    assert spans is not None
    q, k, v = torch.randn(2, 2, len(rows), 16), torch.randn(2, 2, 12, 16), torch.randn(2, 2, 12, 16)
    told = ranges_of(np.array(rows), spans), spans_at(np.array(rows), spans)
    with FakeTensorMode() as mode:
        fake = OP(*(mode.from_tensor(t) for t in (q, k, v, *told)))
    for way in WAYS.values():
        found = way(q, k, v, *told)
        assert (found.shape, found.stride()) == (fake.shape, fake.stride())


def test_a_window_takes_ranges_and_spans_in_place_of_prefixes() -> None:
    part = rewritten(use_windows(over_prefixes(True), None))
    assert part.takes == (X, RANGES, SPANS)
    assert [n.name for n in part.graph.find_nodes(op="placeholder")] == ["x", "ranges", "spans"]
    picking = rewritten(pick_keys(within_a_window(True), (0, -1)))
    assert [n.name for n in picking.graph.find_nodes(op="placeholder")] == ["x", "readers", "worth", "chosen_k"]


def test_what_kernels_read_of_a_selection_lies_on_the_device() -> None:
    """What is read before they run lies on the host."""
    assert [one.on_device for one in (SEEN, SPANS)] == [True, True]
    assert [one.on_device for one in (BOUNDS, RANGES, READERS)] == [False, False, False]


def model(*shared: tuple[str, frozenset[str]], refusals: tuple[Refusal, ...] = ()) -> CapturedModel:
    """shared: values by name, and the inputs that they depend on."""
    ports = tuple(SimpleNamespace(name=name, depends=depends) for name, depends in shared)
    return cast(CapturedModel, SimpleNamespace(shared=ports, refusals=refusals))


WITHIN, PICKED_FROM = within_a_window(True), rewritten(pick_keys(within_a_window(True), (0, -1)))
NOT_KNOWN = "the mask of `attn` is not known to hide later chunks and nothing else"
OF_THE_CALLER = "an input of each call says which keys `attn` reads, so the caller has a window of its own"
NO_ROWS = (Refusal("conv", "it mixes tokens"), Refusal("norm", "so does this"))
OUTSIDE: dict[str, tuple[CapturedModel, list[Any], str]] = {
    "a window": (model(), [WITHIN], ""),
    "picked keys": (model(), [WITHIN, PICKED_FROM], ""),
    "no row forms": (model(refusals=NO_ROWS), [], "it mixes tokens"),
    "no reason for it": (model(), [], "its tokens cannot be computed one by one"),
    "no attention": (model(), [scaling(), scaling()], "none of its blocks attends"),
    "no mask": (model(), [WITHIN, attending(True)], "in `attn` every token sees all tokens"),
    "a mask of sizes": (model(("mask", frozenset()), ("text", frozenset({"prompt"}))), [masked()], NOT_KNOWN),
    "a mask of a call": (model(("text", frozenset()), ("mask", frozenset({"seen"}))), [masked()], OF_THE_CALLER),
}


@pytest.mark.parametrize("how", OUTSIDE)
def test_a_window_holds_where_all_attention_of_the_rows_is_within_one(how: str) -> None:
    captured, rows, why = OUTSIDE[how]
    assert outside_windows(captured, rows) == why
