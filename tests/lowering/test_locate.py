"""Where sources are found in a captured model, and why they are not: models of two blocks, told by their facts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import fx

from mccompile import ir
from mccompile.capture.part import Input, Modulated, Shared
from mccompile.capture.types import AnyGrid, Beside, CapturedModel, ModulatedInput, Port, TokenGrid, ToldGrid
from mccompile.language.load import load_policy
from mccompile.lowering.errors import SourceNotFound
from mccompile.lowering.locate import latent_inputs, locate, static_sources, timestep_of
from mccompile.lowering.sources import (
    BlockStreams,
    Located,
    ModelOutput,
    Probe,
    ProbeOutput,
    RegionInput,
    RegionOutput,
    SourceValue,
    VideoStream,
)
from mccompile.lowering.types import LoweredRegion

GRID = TokenGrid("latent", (2, 3, 4), (1, 2, 2))
ALONE = Beside(0, 0)
DATA = frozenset({"latent", "t", "text"})
KEPT = LoweredRegion(1, 1, "residual", (("x1", "x2"),))
REGIONS = (LoweredRegion(0, 0, None, (("x0", "x1"),)), KEPT)


def stream(name: str, beside: Beside | None = ALONE, rows: str = "video") -> Port:
    return Port(name, 1, rows, DATA, beside=beside)


def shared(name: str, *depends: str, axis: int | None = None) -> Port:
    return Port(name, axis, "video" if axis else "", frozenset(depends))


def module(inputs: tuple[str, ...], *outputs: Any, channels: int = 4) -> fx.GraphModule:
    """A graph of these inputs, the first one a latent of so many channels. outputs: what is known of each."""
    graph = fx.Graph()
    holders = [graph.placeholder(name) for name in inputs]
    holders[0].meta["val"] = torch.zeros(1, channels, 2, 4, 4)
    made = [graph.call_function(torch.neg, (holders[0],)) for _ in outputs]
    for node, value in zip(made, outputs, strict=True):
        node.meta["val"] = value
    graph.output(tuple(made))
    return fx.GraphModule(torch.nn.Module(), graph)


LATENT = torch.zeros(1, 4, 2, 4, 4)
INPUTS = ("latent", "t", "text")


def model(**facts: Any) -> CapturedModel:
    blocks = tuple(
        SimpleNamespace(
            index=i, path=f"blocks.{i}", kind=i, streams_in=(f"x{i}",), streams_out=(f"x{i + 1}",),
            continues=(f"x{i}",), shared=("mixed", "embedding"),
        )
        for i in range(2)
    )  # fmt: skip
    usual = {
        "model_class": "Model", "inputs": INPUTS, "grid": GRID, "module": module(INPUTS, LATENT), "moving": (),
        "streams": tuple(stream(f"x{i}") for i in range(3)), "entry": ("x0",), "exit": ("x2",), "opaque": "",
        "shared": (shared("text_keys", "text"), shared("embedding", "t"), shared("final", "t", axis=1)),
        "sources": (), "blocks": blocks,
        "kinds": (SimpleNamespace(modulated=ModulatedInput("node", 1, ALONE)), SimpleNamespace(modulated="not asked")),
    }  # fmt: skip
    return cast(CapturedModel, SimpleNamespace(**(usual | facts)))


POLICY = load_policy(
    "policy p { signal s = rel_l1(latent) phase a { reuse chunk while s < 10% } layers blocks[1..] { keep residual } }"
)
OF_BLOCK = load_policy(
    "policy p { signal s = l1(kept(blocks[1].residual), kept(blocks[1].residual, 2)) "
    "phase a { reuse chunk while s < 10% } layers blocks[1..] { keep residual } }"
)


def found(
    source: ir.SourceName,
    captured: CapturedModel,
    regions: tuple[LoweredRegion, ...] = REGIONS,
    gain: ir.Expr | None = None,
) -> Located:
    """Where the one source lies that a rule reads."""
    (signal,) = POLICY.signals
    reads = replace(signal.expr, of=ir.SourceRef(source, gain))  # type: ignore[type-var]
    policy = OF_BLOCK if source == "block" else replace(POLICY, signals=(replace(signal, expr=reads),))
    (only,) = locate(captured, policy, regions, (1,)).values()
    return only


FOUND: dict[str, tuple[ir.SourceName, dict[str, Any], SourceValue, str, int]] = {
    "latent": ("latent", {}, Input("latent"), "latent", 2),
    "output": ("output", {}, ModelOutput(4), "latent", 2),
    "output without known channels of the latent": (
        "output", {"module": module(INPUTS, LATENT, channels=8)}, ModelOutput(4), "latent", 2,
    ),
    "modulation": ("modulation", {}, Shared("embedding"), "constant", 0),
    "modulation of each frame": (
        "modulation", {"shared": (shared("embedding", "t", axis=2),)}, Shared("embedding"), "tokens", 2,
    ),
    "what the latents mix into": (
        "modulation", {"shared": (shared("mixed", "latent", "t"), shared("second", "t"), shared("embedding", "t"))},
        Shared("embedding"), "constant", 0,
    ),
    "time_embedding": ("time_embedding", {}, Shared("final"), "tokens", 1),
    "embedded": ("embedded", {}, VideoStream(), "tokens", 1),
    "probe": ("probe", {}, Probe(), "tokens", 1),
    "probe_output": ("probe_output", {}, ProbeOutput(), "tokens", 1),
    "input": ("input", {}, RegionInput(), "tokens", 1),
    "modulated_input": ("modulated_input", {}, Modulated(), "tokens", 1),
    "a block": ("block", {}, BlockStreams("x1", "x2"), "tokens", 1),
    "text in front": ("embedded", {"streams": (stream("x0", Beside(3, 0), "3+video"),)}, VideoStream(), "tokens", 1),
    "text of any length in front": (
        "embedded", {"streams": (stream("x0", Beside(None, 0), "?"),)}, VideoStream(), "tokens", 1,
    ),
    "known on both sides, without a grid": ("embedded", {"grid": None}, VideoStream(), "tokens", 1),
    "the stream with the video": (
        "embedded", {"streams": (replace(stream("y", None), token_axis=None), replace(stream("x0"), token_axis=2)),
                     "entry": ("y", "x0")}, VideoStream(), "tokens", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", FOUND)
def test_a_source_is_found_by_what_it_depends_on(how: str) -> None:
    source, facts, value, layout, axis = FOUND[how]
    where = found(source, model(**facts))
    assert (where.value, where.layout, where.axis) == (value, layout, axis)
    assert where.patch == ((1, 1, 1) if facts.get("grid", GRID) is None else (1, 2, 2))


NO_AXES = "its latent input is not [batch, channel, frame, height, width]"
NOT_ONE = "it does not give one tensor [batch, channel, frame, height, width]"
BESIDE = "its video tokens lie among others whose number varies"
LEAVES = "no stream of video tokens leaves the cached region"
NO_PROBE = "no always-computed blocks come before the cached region"
NO_STREAM = "the output of a part of a block is kept, and that continues no stream"
INSIDE = replace(KEPT, inside=True)
FLAT: AnyGrid = ToldGrid("latent", (1, 2, 2))
MISSING: dict[str, tuple[ir.SourceName, dict[str, Any], tuple[LoweredRegion, ...], str]] = {
    "a flat latent": ("latent", {"grid": FLAT}, REGIONS, NO_AXES),
    "an image": ("latent", {"grid": TokenGrid("latent", (None, 2, 3), (1, 2, 2))}, REGIONS, NO_AXES),
    "the output of a flat latent": ("output", {"grid": None}, REGIONS, NO_AXES),
    "the output for an image": ("output", {"grid": TokenGrid("latent", (None, 2, 3), (1, 2, 2))}, REGIONS, NO_AXES),
    "two outputs": ("output", {"module": module(INPUTS, LATENT, LATENT)}, REGIONS, NOT_ONE),
    "a number": ("output", {"module": module(INPUTS, 3)}, REGIONS, NOT_ONE),
    "a flat output": ("output", {"module": module(INPUTS, torch.zeros(1, 4, 4))}, REGIONS, NOT_ONE),
    "a variance": (
        "output", {"module": module(INPUTS, LATENT, channels=2)}, REGIONS,
        "its output has 4 channels and its latent input 2: a variance is among them",
    ),
    "no modulation": (
        "modulation", {"shared": (shared("embedding", "t", "latent"), shared("final", "t"))}, REGIONS,
        "no value that the blocks read depends on the timestep and not on the latents",
    ),
    "no embedding of the timestep": (
        "time_embedding", {"shared": (shared("embedding", "t"),)}, REGIONS,
        "no value that the final layer read depends on the timestep and not on the latents",
    ),
    "blocks of the model's own code": (
        "modulation", {"opaque": "it loops"}, REGIONS, "its blocks run as the model's own code",
    ),
    "no video": ("embedded", {"streams": (stream("x0", None),)}, REGIONS, "no stream of video tokens enters"),
    "no axis of tokens": (
        "embedded", {"streams": (replace(stream("x0"), token_axis=None),)}, REGIONS, "no stream of video tokens enters",
    ),
    "text on both sides": ("embedded", {"streams": (stream("x0", Beside(None, None), "?"),)}, REGIONS, f"{BESIDE} (?)"),
    "text in front, without a grid": (
        "embedded", {"streams": (stream("x0", Beside(None, 0), "?"),), "grid": None}, REGIONS, f"{BESIDE} (?)",
    ),
    "text behind, without a grid": (
        "embedded", {"streams": (stream("x0", Beside(0, None), "?"),), "grid": None}, REGIONS, f"{BESIDE} (?)",
    ),
    "nothing is kept": ("block_output", {}, REGIONS[:1], LEAVES),
    "no video leaves": ("block_output", {"streams": (*map(stream, ("x0", "x1")), stream("x2", None))}, REGIONS, LEAVES),
    "a part of a block leaves": ("block_output", {}, (REGIONS[0], INSIDE), LEAVES),
    "the model's increment": ("block_output", {}, (REGIONS[0], replace(KEPT, keep="increment")), LEAVES),
    "no block has it": (
        "block", {"streams": (stream("x0"), stream("x1"), stream("x2", None))}, REGIONS,
        "the block continues no stream of video tokens",
    ),
    "no modulated input": (
        "modulated_input", {"kinds": (SimpleNamespace(modulated="it attends to nothing"),)}, REGIONS,
        "it attends to nothing",
    ),
    "a modulated input among others": (
        "modulated_input", {"kinds": (SimpleNamespace(modulated=ModulatedInput("n", 1, Beside(None, None))),)},
        REGIONS, BESIDE,
    ),
    "what enters a part of a block": ("input", {}, (REGIONS[0], INSIDE), NO_STREAM),
    "no blocks in front": ("probe", {}, (replace(KEPT, first=0),), NO_PROBE),
    "kept blocks in front": ("probe_output", {}, (replace(KEPT, first=0, last=0), REGIONS[0]), NO_PROBE),
    "nothing but blocks in front": ("probe", {}, REGIONS[:1], NO_PROBE),
    "a filter without rows and columns": (
        "latent", {"grid": None}, REGIONS, "a filter needs rows and columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", MISSING)
def test_a_source_that_is_not_there_says_why(how: str) -> None:
    source, facts, regions, why = MISSING[how]
    with pytest.raises(SourceNotFound) as missing:
        found(source, model(**facts), regions, ir.Frequency() if "filter" in how else None)
    assert f"which was not found in Model: {why}" in str(missing.value)


LATE = """policy p {
  signal motion = frame_diff(block_output) | min_max(floor = 60%)
  phase a { reuse token while accumulate(motion) < 2 }
  layers blocks[1..] { keep residual }
}
"""


def test_what_leaves_the_last_cached_region_is_found() -> None:
    (where,) = locate(model(), load_policy(LATE), REGIONS).values()
    assert where == Located("block_output", RegionOutput(), "tokens", 1, (1, 2, 2))
    two = (replace(KEPT, first=0, last=0, pairs=(("x0", "x1"),)), replace(KEPT, pairs=(("", "y"), ("x1", "x2"))))
    streams = (stream("x0"), stream("x1", None), stream("y", None), stream("x2"))
    assert locate(model(streams=streams), load_policy(LATE), two)["block_output"] == where


def test_the_usual_name_of_the_timestep_where_a_model_has_none() -> None:
    assert timestep_of(model()) == "t"
    assert timestep_of(model(inputs=("latent", "t", "timestep"))) == "timestep"
    assert timestep_of(model(inputs=("latent",))) == "timestep"


def test_what_changes_with_the_latents_is_all_that_the_streams_of_tokens_depend_on() -> None:
    sound = replace(stream("sound", None), depends=frozenset({"noise"}))
    captured = model(streams=(stream("x0"), sound), entry=("x0", "sound"), moving=("noise",))
    assert latent_inputs(captured) == {"latent", "text", "noise"}
    assert latent_inputs(model(streams=(stream("x0"), sound), entry=("x0", "sound"))) == {"latent", "text"}


def test_sources_of_the_clock_alone_are_static() -> None:
    where = {
        name: Located(name, value, "tokens", 1, (1, 1, 1))
        for name, value in (("modulation", Shared("embedding")), ("embedded", Shared("mixed")),
                            ("input", Shared("rows")), ("latent", Input("latent")))
    }  # fmt: skip
    captured = model(
        streams=(replace(stream("x0"), depends=frozenset({"latent", "t"})),),
        shared=(shared("embedding", "t", "text"), shared("mixed", "t", "latent")), sources=(shared("rows", "text"),),
    )  # fmt: skip
    assert static_sources(captured, where) == {"modulation", "input"}  # type: ignore[arg-type]
