"""Masks in the form that attention adds: in the dtype of the queries, also where a model has several dtypes."""

from __future__ import annotations

import torch
from torch import fx

import mccompile.api
from mccompile.capture.part import Additive, Part, Stream
from mccompile.generate.flops import prices_of
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.masks import dtypes_of_queries
from tests.runtime.conftest import transformer

aten = torch.ops.aten


def part_of(*casts: torch.dtype | None) -> Part:
    """One attention for each entry, whose queries are cast to it; all of them under one mask."""
    graph = fx.Graph()
    x, mask = graph.placeholder("x"), graph.placeholder("mask")
    wide = graph.call_function(aten.unsqueeze.default, (mask, 0))
    made = []
    for dtype in casts:
        query = x if dtype is None else graph.call_function(aten.to.dtype, (x, dtype))
        made.append(graph.call_function(aten.scaled_dot_product_attention.default, (query, query, query, wide)))
    graph.output(tuple(made))
    gives = tuple(Stream(f"y{i}") for i in range(len(made)))
    return Part(fx.GraphModule(torch.nn.Module(), graph), (Stream("x"), Additive("mask")), gives)


def test_the_dtype_is_that_of_the_queries_that_meet_the_mask() -> None:
    arguments = torch.zeros(1, 2, 4, 8, dtype=torch.bfloat16), torch.ones(1, 4, 4, dtype=torch.bool)
    assert dtypes_of_queries(part_of(None), arguments) == {"mask": torch.bfloat16}
    assert dtypes_of_queries(part_of(torch.float32), arguments) == {"mask": torch.float32}
    assert dtypes_of_queries(part_of(None, torch.float32), arguments) == {"mask": None}  # it stays as it is


def call(frames: int, height: int, width: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(frames)
    text = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    return {
        "hidden_states": torch.randn(1, 4, frames, height, width, generator=generator).bfloat16(),
        "timestep": torch.full((1, frames), 500), "encoder_hidden_states": text, "enable_diffusion_forcing": True,
        "return_dict": False,
    }  # fmt: skip


def test_a_model_of_two_dtypes_is_the_model_itself_under_compute() -> None:
    """As checkpoints are loaded: bfloat16, and the modules that diffusers keeps in float32."""
    model = transformer(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if any(kept in name.split(".") for kept in model._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}
    grid = Grid(1, (500.0,), (0.5,))
    compiled = mccompile.api.compile(
        model, "compute", backend="eager", probe=call(4, 6, 14), second=call(6, 10, 22),
        clock=Timeline("one", grid, steps_in_order(grid)),
    )  # fmt: skip
    again = call(6, 6, 8)
    with torch.no_grad():
        assert torch.equal(compiled(**again)[0], model(**again)[0])
    masks = compiled.runner.engine.blocks._masks
    assert [dtype for _, dtype in masks._known] == [torch.bfloat16]
    # A block's work is counted once, however often it is looked at.
    first = prices_of(compiled, again).blocks[0]
    text, tokens, width, inner = 7, 6 * 3 * 4, model.config.num_attention_heads * model.config.attention_head_dim, 64
    linear = tokens * width * (6 * width + 2 * inner) + 2 * text * width * width
    assert first.whole == 2 * linear + 4 * tokens * (tokens + text) * width
