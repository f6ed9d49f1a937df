"""The CPU's own attention over prefixes equals masked attention in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch.nn import functional as nnf

from mccompile.backend.native import SOURCE, covers, kernel, use_native

OP = torch.ops.mccompile.prefix_attention_native
needs_kernel = pytest.mark.skipif(kernel() is None, reason="no AVX-512, or no C++ compiler")


def oracle(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(q.size(2), k.size(2), dtype=torch.bool)
    for first, end, stop in bounds.tolist():
        mask[first:end, :stop] = True
    grouped = q.size(1) != k.size(1)
    double = nnf.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=mask, enable_gqa=grouped
    )
    return double.float()


def token_major(samples: int, heads: int, rows: int, dim: int) -> torch.Tensor:
    """[B, H, n, D] as blocks hold it: a view of [B, n, H, D]."""
    return torch.randn(samples, rows, heads, dim).transpose(1, 2)


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 70), min_size=1, max_size=4), tokens=st.integers(1, 150),
    dim=st.sampled_from([16, 32, 48, 64, 96, 128, 256]), heads=st.sampled_from([(1, 1), (3, 3), (4, 2)]),
    samples=st.integers(1, 2), loud=st.booleans(),
)  # fmt: skip
def test_equals_masked_attention(
    counts: list[int], tokens: int, dim: int, heads: tuple[int, int], samples: int, loud: bool
) -> None:
    torch.manual_seed(0)
    ends = torch.tensor(counts).cumsum(0)
    stops = (torch.arange(len(counts)) + 1) * tokens
    bounds = torch.stack((ends - torch.tensor(counts), ends, stops), 1)
    q = token_major(samples, heads[0], sum(counts), dim) * (100.0 if loud else 1.0)  # loud: one key takes all
    k, v = (token_major(samples, heads[1], len(counts) * tokens, dim) for _ in range(2))
    assert covers(q, k, v)
    tolerance = 1e-3 if loud else 2e-5  # scores of some hundreds are float32 numbers 3e-5 apart
    torch.testing.assert_close(OP(q, k, v, bounds), oracle(q, k, v, bounds), rtol=1e-4, atol=tolerance)


@needs_kernel
def test_rows_in_a_plain_layout_and_a_scale_of_its_own() -> None:
    q, k, v = (torch.randn(2, 3, n, 64) for n in (5, 40, 40))
    bounds = torch.tensor([[0, 2, 17], [2, 5, 40]])
    wanted = OP(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)), bounds, 0.3)
    torch.testing.assert_close(OP(q, k, v, bounds, 0.3), wanted, rtol=0, atol=0)
    torch.testing.assert_close(wanted, oracle(q * 0.3 * 8.0, k, v, bounds), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("dim", "dtype"), [(24, torch.float32), (272, torch.float32), (64, torch.bfloat16)])
def test_what_the_kernel_does_not_cover_runs_on_torch(dim: int, dtype: torch.dtype) -> None:
    q, k, v = (token_major(1, 2, n, dim).to(dtype) for n in (4, 12, 12))
    bounds = torch.tensor([[0, 1, 6], [1, 4, 12]])
    assert not covers(q, k, v)
    assert torch.equal(OP(q, k, v, bounds), torch.ops.mccompile.prefix_attention(q, k, v, bounds))


def test_only_graphs_on_the_cpu_are_rewritten() -> None:
    graph = fx.Graph()
    inputs = [graph.placeholder(n) for n in ("q", "k", "v", "bounds")]
    node = graph.call_function(torch.ops.mccompile.prefix_attention.default, tuple(inputs))
    graph.output((node,))
    use_native(graph, torch.device("cuda"))
    assert node.target is torch.ops.mccompile.prefix_attention.default
    use_native(graph, torch.device("cpu"))
    assert (node.target is OP.default) == (kernel() is not None)


def test_the_source_travels_with_the_package() -> None:
    assert SOURCE.is_file()


def test_without_avx512_torch_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    kernel.cache_clear()
    try:
        assert kernel() is None
    finally:
        kernel.cache_clear()
