"""Attention over prefixes equals SDPA under the block-causal mask, in value and in memory layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as nnf

from mccompile.lowering.attention import bounds_of, prefix_lengths, seen_of

OP = torch.ops.mccompile.prefix_attention


def block_causal(chunks: int, tokens: int) -> torch.Tensor:
    chunk = torch.arange(chunks).repeat_interleave(tokens)
    return chunk[None, :] <= chunk[:, None]


@pytest.mark.parametrize("rows", [[0, 0], [3, 4], [0, 1, 2, 3], [0, 5, 6, 11], list(range(12))])
@pytest.mark.parametrize("groups", [2, 1])
def test_equals_masked_attention_in_value_and_layout(rows: list[int], groups: int) -> None:
    torch.manual_seed(0)
    mask = block_causal(3, 4)
    q = torch.randn(2, 2, 12, 8)[:, :, rows]
    k, v = torch.randn(2, groups, 12, 8), torch.randn(2, groups, 12, 6)
    lengths = prefix_lengths(mask[None, None])
    assert lengths is not None
    told = bounds_of(np.array(rows), lengths), seen_of(np.array(rows), lengths)
    out = OP(q, k, v, *told)
    wanted = nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask[rows], enable_gqa=groups == 1)
    torch.testing.assert_close(out, wanted)
    with FakeTensorMode() as mode:
        fake = OP(*(mode.from_tensor(t) for t in (q, k, v, *told)))
    assert out.stride() == fake.stride()


def test_additive_masks_are_read() -> None:
    mask = torch.zeros(8, 8).masked_fill(~block_causal(2, 4), -1e9)
    assert prefix_lengths(mask) is not None
    mask[0, 1] = -0.5  # a bias is no mask
    assert prefix_lengths(mask) is None


@pytest.mark.parametrize("place", [(0, 5), (6, 0)])
def test_what_is_no_prefix_is_not_taken_for_one(place: tuple[int, int]) -> None:
    mask = block_causal(2, 4)
    mask[place] = ~mask[place]
    assert prefix_lengths(mask) is None


def test_masks_that_differ_between_samples_are_not_one_prefix() -> None:
    mask = torch.stack((block_causal(2, 4), torch.ones(8, 8, dtype=torch.bool)))
    assert prefix_lengths(mask) is None


ROWS = st.integers(0, 4).map(lambda n: [True] * n + [False] * (4 - n)) | st.lists(st.booleans(), min_size=4, max_size=4)
HIDDEN = st.sampled_from([-1e4, -float("inf"), -1e9])


@settings(max_examples=80, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6), HIDDEN, st.sampled_from([0.0, 0.0, 0.5]), st.integers(1, 9))
def test_prefixes_of_any_mask_are_what_each_row_by_itself_says(
    rows: list[list[bool]], hidden: float, shown: float, largest: int
) -> None:
    """However few rows are looked at at once. A row that sees nothing, or adds to what it sees, has no prefix."""
    mask = torch.tensor(rows)
    each = [sum(row) for row in rows]
    prefixes = all(n and row == [True] * n + [False] * (4 - n) for row, n in zip(rows, each, strict=True))
    wanted = each if prefixes else None
    additive = torch.where(mask, shown, hidden)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mccompile.lowering.attention.LARGEST", largest)
        for given_one, lengths in ((mask, wanted), (additive, None if shown else wanted)):
            found = prefix_lengths(given_one)
            assert (None if found is None else found.tolist()) == lengths
