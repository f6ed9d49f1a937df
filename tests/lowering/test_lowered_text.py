"""The text of a lowered model, line by line: one that has every graph that there is, and one that has the fewest."""

from __future__ import annotations

import operator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import fx

from mccompile.capture.part import Input
from mccompile.capture.types import Refusal
from mccompile.lowering.emit import emit, graphs
from mccompile.lowering.host import ClockRow, Flag
from mccompile.lowering.slots import DecidedBy, Mask
from mccompile.lowering.sources import Located
from mccompile.lowering.types import LoweredModel, LoweredRegion


def adding(number: int) -> Any:
    """A graph that adds a number, and reads no weight."""
    graph = fx.Graph()
    graph.output((graph.call_function(operator.add, (graph.placeholder("x"), number)),))
    return SimpleNamespace(module=fx.GraphModule(torch.nn.Module(), graph))


def weighing() -> Any:
    graph, module = fx.Graph(), torch.nn.Module()
    module.register_buffer("scale", torch.ones(()))
    x = graph.placeholder("x")
    graph.output((graph.call_function(operator.mul, (x, graph.get_attr("scale"))),))
    return SimpleNamespace(module=fx.GraphModule(module, graph))


def deciding(number: int) -> Any:
    made = adding(number)
    made.host, made.outputs = (Flag("active"), ClockRow("sigma")), (Mask(), DecidedBy())
    return made


def lowered(**more: Any) -> LoweredModel:
    captured = SimpleNamespace(
        model_class="Model", entry=("x",), shared=(SimpleNamespace(name="text"),), prelude=weighing(),
        blocks=tuple(SimpleNamespace(index=i, path=f"blocks.{i}", kind=i // 2) for i in range(3)),
    )  # fmt: skip
    usual = {
        "policy": SimpleNamespace(name="p"), "captured": captured, "regions": (LoweredRegion(0, 2, "residual", ()),),
        "located": {}, "static": frozenset(), "refusals": (), "pieces": (SimpleNamespace(sublayers=()),),
        "rows": None, "modulated": None, "decides": {"": None}, "plain": (adding(1),), "observe": None,
        "postlude": adding(2),
    }  # fmt: skip
    return cast(LoweredModel, SimpleNamespace(**(usual | more)))


ROWS = SimpleNamespace(gather=adding(3), partial=(adding(4), adding(5)), once=(None, adding(6)))


FEWEST = '''"""Policy p lowered into Model.

blocks 0..2: decided by the policy, keep residual
"""

import math
import operator

import torch

import mccompile.lowering.attention  # registers torch.ops.mccompile.prefix_attention

aten = torch.ops.aten

BLOCKS = (  # index, path, kind
    (0, "blocks.0", 0),
    (1, "blocks.1", 0),
    (2, "blocks.2", 1),
)


def prelude(
    x,
    weights,
):
    """User inputs to x, text."""
    return (x * weights["scale"],)


def block0_plain(
    x,
):
    """A block on all rows."""
    return (x + 1,)


def postlude(
    x,
):
    """Streams to the model's outputs."""
    return (x + 2,)
'''


def test_the_least_text_is_a_module_of_three_functions() -> None:
    assert emit(lowered()) == FEWEST


BY_ROWS = "A block on selected rows: their keys and values are written into the buffers, all are attended to."


def test_every_graph_is_a_function_in_the_order_of_a_call() -> None:
    whole = lowered(
        rows=ROWS, modulated=adding(7), plain=(adding(1), adding(11)),
        decides={"cond": None, "": deciding(8), "uncond front": deciding(9)},
        observe=SimpleNamespace(module=adding(10).module, signals=("late", "later")),
    )  # fmt: skip
    by_clock = "host [B, K, G]: active, sigma. Returns mask, measured."
    assert [(name, about) for name, _, about in graphs(whole)] == [
        ("prelude", "User inputs to x, text."),
        ("gather", "Rows of the shared values that a selection of tokens needs."),
        ("modulated", "The input of the first attention of block 0."),
        ("decide", f"Which tokens are computed. {by_clock}"),
        ("decide_uncond_front", f"Which tokens are computed of `uncond` in the regions `front`. {by_clock}"),
        ("block0_plain", "A block on all rows."), ("block1_plain", "A block on all rows."),
        ("block0_partial", BY_ROWS), ("block1_partial", BY_ROWS),
        ("block1_once", "What a block on selected rows takes from the prompt, once."),
        ("observe", "Late signals, from the region's output: late, later."),
        ("postlude", "Streams to the model's outputs."),
    ]  # fmt: skip
    names: dict[str, Any] = {}
    exec(compile(emit(whole), "lowered.py", "exec"), names)
    added = {name: names[name](100)[0] - 100 for name, _, _ in graphs(whole) if name != "prelude"}
    assert list(added.values()) == [3, 7, 8, 9, 1, 11, 4, 5, 6, 10, 2]


def test_sources_and_refusals_stand_in_front() -> None:
    text = emit(lowered(
        located={"latent": Located("latent", Input("x"), "latent", 2, (1, 2, 2))}, static={"modulation", "embedded"},
        refusals=(Refusal("conv", "it mixes tokens"), Refusal("norm", "so does this")),
    ))  # fmt: skip
    assert text.splitlines()[3:8] == [
        "source latent: input:x (latent)", "known before the first frame: embedded, modulation",
        "refused conv: it mixes tokens", "refused norm: so does this", '"""',
    ]  # fmt: skip


FRONT = LoweredRegion(0, 1, "residual", (), group="front")
REGIONS: dict[str, tuple[LoweredRegion, tuple[str, ...], str]] = {
    "a group": (FRONT, (), "blocks 0..1: decided as `front`, keep residual"),
    "always computed": (replace(FRONT, keep=None), (), "blocks 0..1: always computed"),
    "merged": (
        replace(FRONT, nearest="latent"), (),
        "blocks 0..1: decided as `front`, taken from the token nearest by latent",
    ),
    "sublayers": (FRONT, ("attn",), "blocks.0 to blocks.1: decided as `front`, keep residual"),
    "one piece": (replace(FRONT, last=0), ("attn",), "blocks.0: decided as `front`, keep residual"),
}  # fmt: skip


@pytest.mark.parametrize("how", REGIONS)
def test_each_region_has_a_line(how: str) -> None:
    region, sublayers, line = REGIONS[how]
    text = emit(lowered(regions=(region,), pieces=tuple(SimpleNamespace(sublayers=s) for s in ((), sublayers))))
    assert text.splitlines()[2] == line
