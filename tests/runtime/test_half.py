"""Half precision is first-class: the laws, the policies, and compiled generations in bfloat16 on the CPU.

A result in bfloat16 has an error of its own. A bound is therefore not a number of ours: it is what the stock pipeline
itself makes of its noise moved by one rounding, times the number of roundings that a rewritten graph may add.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mccompile.api
from mccompile.runtime.trace import share_computed
from tests.runtime.conftest import Tiny, embeds, pipeline
from tests.runtime.test_laws import MOTION, compiled

HALF = torch.bfloat16
ROUNDINGS = 4  # of the streams between blocks, by a graph that is split where the model is not


@pytest.fixture(scope="module")
def half() -> Tiny:
    pipe = pipeline()
    pipe.transformer.to(HALF)
    call = {k: v.to(HALF) if isinstance(v, torch.Tensor) else v for k, v in embeds().items()}
    return Tiny(pipe, call, mccompile.api.prepare(pipe, call=call))


@pytest.fixture(scope="module")
def stock(half: Tiny) -> torch.Tensor:
    return noisy(half)


@pytest.fixture(scope="module")
def bound(half: Tiny, stock: torch.Tensor) -> float:
    """The largest error that one rounding of the initial noise grows to, times the roundings that are allowed."""
    moved = noisy(half, 1 + 2**-8)
    return ROUNDINGS * float((moved - stock).abs().max())


def noisy(half: Tiny, factor: float = 1.0, **more: object) -> torch.Tensor:
    """A run from noise that is given, in float32: schedulers compute in float32."""
    noise = torch.randn(1, 4, 8, 6, 8, generator=torch.Generator().manual_seed(0))
    return half.run(latents=noise * factor, **more)


def test_computing_everything_is_the_stock_pipeline(half: Tiny, stock: torch.Tensor) -> None:
    model = compiled(half, "compute")
    assert torch.equal(noisy(half), stock)
    assert share_computed(model.events) == 1.0
    model.undo()


def test_exact_skips_work_within_the_bound(half: Tiny, stock: torch.Tensor, bound: float) -> None:
    model = compiled(half, "exact")
    torch.testing.assert_close(noisy(half), stock, rtol=0, atol=bound)
    assert share_computed(model.events) < 0.75
    model.undo()


def test_every_token_by_rows_is_within_the_bound(half: Tiny, stock: torch.Tensor, bound: float) -> None:
    model = compiled(half, MOTION.replace("finished: keep", "finished: refresh"), threshold=0.01)
    torch.testing.assert_close(noisy(half), stock, rtol=0, atol=bound)
    model.undo()


@pytest.mark.parametrize("policy", [MOTION, "teacache", "flowcache", "dbcache", "taylorseer"])
def test_folding_changes_no_decision(half: Tiny, policy: str) -> None:
    results = []
    for fold in (True, False):
        model = compiled(half, policy, fold=fold)
        out = noisy(half)
        assert torch.isfinite(out).all()
        results.append((out, [replace(e, request="") for e in model.events]))
        model.undo()
    assert share_computed(results[0][1]) < 1.0
    assert [(e.row, e.branch, e.chunk, e.action, e.computed) for e in results[0][1]] == [
        (e.row, e.branch, e.chunk, e.action, e.computed) for e in results[1][1]
    ]
    assert torch.equal(results[0][0], results[1][0])


def test_a_compiled_generation_is_within_the_bound(half: Tiny, stock: torch.Tensor, bound: float) -> None:
    """Inductor keeps some values in float32 that the eager model rounds."""
    model = compiled(half, "exact", backend="inductor")
    torch.testing.assert_close(noisy(half), stock, rtol=0, atol=bound)
    assert share_computed(model.events) < 0.75
    model.undo()
