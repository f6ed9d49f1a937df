"""Half precision is first-class: the laws, the policies, and compiled generations in bfloat16 on the CPU.

A result in bfloat16 has an error of its own. A bound is therefore not a number of ours: it is what the stock pipeline
itself makes of its text moved by one rounding, times the number of roundings that a rewritten graph may add.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx

import mccompile.api
from mccompile.backend.role import GraphCall, Role
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
    return half.run()


@pytest.fixture(scope="module")
def bound(half: Tiny, stock: torch.Tensor) -> float:
    """The largest error that one rounding of the text grows to, times the roundings that are allowed."""
    moved = {k: v * (1 + 2**-7) if isinstance(v, torch.Tensor) else v for k, v in half.call.items()}
    return ROUNDINGS * float((half.run(**moved) - stock).abs().max())


def test_computing_everything_is_the_stock_pipeline(half: Tiny, stock: torch.Tensor) -> None:
    model = compiled(half, "compute")
    assert torch.equal(half.run(), stock)
    assert share_computed(model.events) == 1.0
    model.undo()


def test_exact_skips_work_within_the_bound(half: Tiny, stock: torch.Tensor, bound: float) -> None:
    model = compiled(half, "exact")
    torch.testing.assert_close(half.run(), stock, rtol=0, atol=bound)
    assert share_computed(model.events) < 0.75
    model.undo()


def test_every_token_by_rows_is_within_the_bound(half: Tiny, stock: torch.Tensor, bound: float) -> None:
    model = compiled(half, MOTION.replace("finished: keep", "finished: refresh"), threshold=0.01)
    torch.testing.assert_close(half.run(), stock, rtol=0, atol=bound)
    model.undo()


@pytest.mark.parametrize("policy", [MOTION, "teacache", "flowcache", "fbcache", "taylorseer"])
def test_folding_changes_no_decision(half: Tiny, policy: str) -> None:
    results = []
    for fold in (True, False):
        model = compiled(half, policy, fold=fold)
        out = half.run()
        assert torch.isfinite(out).all()
        results.append((out, [replace(e, request="") for e in model.events]))
        model.undo()
    assert share_computed(results[0][1]) < 1.0
    assert [(e.row, e.branch, e.chunk, e.action, e.computed) for e in results[0][1]] == [
        (e.row, e.branch, e.chunk, e.action, e.computed) for e in results[1][1]
    ]
    assert torch.equal(results[0][0], results[1][0])


def blocks_compiled(module: fx.GraphModule, role: Role) -> GraphCall:
    """The blocks by torch.compile, the rest eager."""
    return torch.compile(module, dynamic=False) if role.part == "block" else module.forward


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # Inductor's own
@pytest.mark.parametrize(
    ("policy", "backend"),
    [
        pytest.param("compute", blocks_compiled, marks=pytest.mark.slow),
        pytest.param("exact", "inductor", marks=pytest.mark.slow),
    ],
    ids=["blocks", "everything"],
)
def test_a_compiled_generation_is_within_the_bound(
    half: Tiny, stock: torch.Tensor, bound: float, policy: str, backend: object
) -> None:
    """Inductor keeps some values in float32 that the eager model rounds."""
    torch._dynamo.utils.counters.clear()
    model = compiled(half, policy, backend=backend)
    torch.testing.assert_close(half.run(), stock, rtol=0, atol=bound)
    assert backend == "inductor" or torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    model.undo()
