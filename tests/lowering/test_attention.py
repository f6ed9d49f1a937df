"""Attention over prefixes equals SDPA under the block-causal mask, in value and in memory layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as nnf

from mccompile.lowering.attention import attend, attend_windows, bounds_of, prefix_lengths, seen_of
from mccompile.lowering.repeated import Repeated

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


def turned(allowed: torch.Tensor, how: str) -> torch.Tensor:
    return allowed if how == "bool" else torch.zeros(allowed.shape).masked_fill(~allowed, -1e4)


@pytest.mark.parametrize("how", ["bool", "additive"])
@pytest.mark.parametrize("largest", [1, 8, 16, 17, 10**6])
def test_a_mask_of_repeated_rows_and_keys_is_read_a_few_rows_at_once(how: str, largest: int) -> None:
    """As many rows as fit, in the order of the tokens: here three chunks of two tokens, the last one first."""
    mask = Repeated(
        turned(block_causal(3, 1), how), (torch.tensor([2, 2, 0, 0, 1, 1]), torch.arange(3).repeat_interleave(2))
    )
    made: list[int] = []
    whole = Repeated.whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mccompile.lowering.attention.LARGEST", largest)
        patch.setattr(Repeated, "whole", lambda self, axes: made.append(self.once.size(0)) or whole(self, axes))
        lengths = prefix_lengths(mask)
    assert lengths is not None
    assert lengths.tolist() == [6, 6, 2, 2, 4, 4]
    assert max(made) * 6 <= max(largest, 6)
    assert len(made) == {1: 3, 8: 3, 16: 2, 17: 2, 10**6: 1}[largest]


@pytest.mark.parametrize("how", ["bool", "additive"])
def test_a_row_that_sees_nothing_has_no_prefix(how: str) -> None:
    mask = block_causal(2, 1)
    mask[0, 0] = False
    assert prefix_lengths(turned(mask, how)) is None


def test_what_adds_to_keys_that_are_seen_is_no_mask() -> None:
    mask = turned(block_causal(2, 2), "additive")
    mask[3, 2] = 1.0
    assert prefix_lengths(mask) is None


@pytest.mark.parametrize("batch", [(2, 1), (1, 3)])
def test_one_mask_for_all_samples_and_heads(batch: tuple[int, int]) -> None:
    mask = block_causal(2, 2).expand(*batch, 4, 4)
    lengths = prefix_lengths(mask)
    assert lengths is not None
    assert lengths.tolist() == [2, 2, 4, 4]
    other = mask.clone()
    other[-1, -1] = True
    assert prefix_lengths(other) is None


def test_rows_of_a_selection_in_one_group_or_several() -> None:
    lengths = np.array([4, 4, 4, 4, 8, 8, 8, 8])
    assert bounds_of(np.array([1, 3, 4, 7]), lengths).tolist() == [[0, 2, 4], [2, 4, 8]]
    assert bounds_of(np.array([5]), lengths).tolist() == [[0, 1, 8]]
    seen = seen_of(np.array([1, 4]), lengths)
    assert seen.tolist() == [4, 8]
    assert (bounds_of(np.array([5]), lengths).dtype, seen.dtype) == (torch.int64, torch.int32)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("bounds", [[[0, 3, 5]], [[0, 1, 2], [1, 3, 5]]])
def test_each_group_attends_to_its_keys(groups: int, scale: float | None, bounds: list[list[int]]) -> None:
    """Heads of keys are shared by heads of queries. The result lies as compilers are told, batch and rows first."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, groups, 6, 8), torch.randn(2, groups, 6, 4)
    found = attend(q, k, v, torch.tensor(bounds), scale)
    keys, values = (t.repeat_interleave(4 // groups, 1) for t in (k, v))
    for first, end, stop in bounds:
        scores = (q[:, :, first:end] @ keys[:, :, :stop].mT) * (8**-0.5 if scale is None else scale)
        torch.testing.assert_close(found[:, :, first:end], scores.softmax(-1) @ values[:, :, :stop])
    assert found.shape == (2, 4, 3, 4)
    assert found.transpose(1, 2).is_contiguous()
    windowed = [[first, end, 0, 0, stop] for first, end, stop in bounds]
    assert torch.equal(attend_windows(q, k, v, torch.tensor(windowed), scale), found)


@pytest.mark.parametrize("bounds", [[[0, 2, 4]], [[0, 1, 2], [1, 2, 4]]])
def test_heads_share_keys_whatever_the_other_sizes_are(bounds: list[list[int]]) -> None:
    """As many rows as heads of keys, and as many keys as heads of queries."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8)
    shared = (t.repeat_interleave(2, 1) for t in (k, v))
    torch.testing.assert_close(attend(q, k, v, torch.tensor(bounds)), attend(q, *shared, torch.tensor(bounds)))
