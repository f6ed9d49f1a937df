"""For each pass the models on which it refuses, each beside the same model mended, which the pass rewrites.

The graphs are written by hand. A refused model differs from its mended one in the one thing that the pass asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import torch
from torch import fx, nn

from mccompile.capture.part import (
    AttentionSite,
    Buffer,
    Hoisted,
    Index,
    Operand,
    Part,
    Positions,
    Result,
    RowSource,
    Shared,
    Stream,
    Weight,
)
from mccompile.capture.types import CapturedModel
from mccompile.lowering.coarse import Coarse, find_coarse
from mccompile.lowering.prefixes import BOUNDS, SEEN
from mccompile.lowering.windows import PREFIX, RANGES, SPANS, WINDOW

aten = torch.ops.aten
sdpa = aten.scaled_dot_product_attention.default
Built = Mapping[Result, fx.Node]
Call = Callable[..., fx.Node]
X, TEXT, MASK, MODULATION, K, V = Stream("x"), Shared("text"), Shared("mask"), Shared("m"), Buffer("k"), Buffer("v")
MADE, END = Stream("made"), 2**63 - 1


@dataclass(frozen=True)
class Refused:
    """A model that a pass refuses under a setting, for a reason, and one that it rewrites."""

    why: str
    part: Part
    setting: object
    reason: str
    mended: Part
    mended_setting: object


def part_of(
    takes: Mapping[Operand, str], body: Callable[[Call, dict[str, fx.Node]], Built], mask: Shared | None = None
) -> Part:
    """A part of the operands `takes`, by placeholder. body: calls operators on them, and says what is given."""
    graph = fx.Graph()
    values = {name: graph.placeholder(name) for name in takes.values()}
    gives = body(graph.call_function, values)
    graph.output(tuple(gives.values()))
    attends = [n.name for n in graph.nodes if n.target in (sdpa, WINDOW)]
    sites = tuple(AttentionSite(name, "attn", K, V, mask) for name in attends)
    return Part(fx.GraphModule(nn.Module(), graph), tuple(takes), tuple(gives), sites)


def attending(buffers: bool) -> Part:
    """A block on all rows whose attention keeps its keys and values, or does not."""

    def body(call: Call, at: dict[str, fx.Node]) -> Built:
        for name in ("k", "v") if buffers else ():
            call(aten.copy_.default, (at[name], at["x"]))
        return {MADE: call(sdpa, (at["x"], at["x"], at["x"]))}

    return part_of({X: "x", K: "k", V: "v"} if buffers else {X: "x"}, body)


def projecting(video: bool) -> Part:
    """A block whose queries are projected from the video stream, or from the text alone."""

    def body(call: Call, at: dict[str, fx.Node]) -> Built:
        q = call(aten.linear.default, (at["x" if video else "text"], at["w"]))
        return {MADE: call(sdpa, (q, at["x"], at["x"]))}

    return part_of({X: "x", TEXT: "text", Weight("w"): "w"}, body)


def masked(read_as_number: bool = False) -> Part:
    """A block whose attention has a mask; the mask may also be read as a number."""

    def body(call: Call, at: dict[str, fx.Node]) -> Built:
        x = call(aten.mul.Tensor, (at["x"], at["mask"])) if read_as_number else at["x"]
        return {MADE: call(sdpa, (x, at["x"], at["x"], at["mask"]))}

    return part_of({X: "x", MASK: "mask"}, body, MASK)


def unmasked() -> Part:
    """A block that takes a mask which no attention reads."""
    return part_of(
        {X: "x", MASK: "mask"}, lambda call, at: {MADE: call(sdpa, (at["x"], at["x"], at["x"])), MASK: at["mask"]}
    )


def gathering(axis: int) -> Part:
    """A gather that picks rows of a smaller value along its frames (1), or along its samples (0)."""

    def body(call: Call, at: dict[str, fx.Node]) -> Built:
        frame = call(aten.floor_divide.default, (at["index"], 4))
        rows = call(aten.index_select.default, (at["per_frame"], axis, frame))
        return {MODULATION: call(aten.contiguous.default, (rows,))}

    return part_of({RowSource("per_frame"): "per_frame", Index(): "index"}, body)


def coarse_of(gather: Part) -> tuple[Coarse, ...]:
    """What a model with this gather lets blocks pick for themselves."""
    sources = (SimpleNamespace(name="per_frame", token_axis=None, batch=None),)
    return find_coarse(cast(CapturedModel, SimpleNamespace(gather=gather, sources=sources, blocks=())))


def reading(shared: Shared) -> Part:
    """A row form that scales by a shared value."""
    return part_of({X: "x", shared: "by"}, lambda call, at: {MADE: call(aten.mul.Tensor, (at["x"], at["by"]))})


def halves(odd_from: int = 1, step: int = 2, early: bool = False) -> Part:
    """A value written in two halves of its last axis. early: it is read before both are there."""

    def body(call: Call, at: dict[str, fx.Node]) -> Built:
        whole = call(aten.empty_like.default, (at["x"],))
        read = call(aten.neg.default, (whole,)) if early else None
        for start in (0, odd_from):
            half = call(aten.slice.Tensor, (whole, 1, start, END, step))
            call(aten.copy_.default, (half, at["text"]))
        return {MADE: read or call(aten.neg.default, (whole,))}

    return part_of({X: "x", TEXT: "text"}, body)


def prompting(projected: bool) -> Part:
    """A row form whose keys are projected from the prompt, or are a view of it; weights alone make a bias."""

    def body(call: Call, at: dict[str, fx.Node]) -> Built:
        bias = call(aten.neg.default, (at["w"],))
        k = call(aten.linear.default, (at["text"], at["w"])) if projected else call(aten.t.default, (at["text"],))
        return {MADE: call(sdpa, (call(aten.add.Tensor, (at["x"], bias)), k, k))}

    return part_of({X: "x", TEXT: "text", Weight("w"): "w"}, body)


def scaling(unread: bool = False) -> Part:
    """A model that reads all that it takes, or leaves one of its values unread."""
    takes: dict[Operand, str] = {X: "x", Weight("w"): "w"} | ({TEXT: "text"} if unread else {})
    return part_of(takes, lambda call, at: {MADE: call(aten.mul.Tensor, (at["x"], at["w"]))})


def keeping(kept: bool, rows: str = "video") -> Part:
    """A row form that attends to the keys and values of its buffers, of these rows, or that attends to nothing kept."""

    def body(call: Call, at: dict[str, fx.Node]) -> Built:
        if not kept:
            return {MADE: call(aten.mul.Tensor, (at["x"], at["once"]))}
        k, v = (call(aten.index_copy_.default, (at[n], 1, at["rows"], at["x"])) for n in ("k", "v"))
        return {MADE: call(sdpa, (at["x"], k, v))}

    if kept:
        return part_of({X: "x", K: "k", V: "v", Positions(rows): "rows"}, body)
    return part_of({X: "x", Hoisted(0, False): "once"}, body)


def over_prefixes(attends: bool) -> Part:
    """A row form whose attention is over prefixes, or that attends to nothing."""

    def body(call: Call, at: dict[str, fx.Node]) -> Built:
        x = at["x"]
        made = call(PREFIX, (x, x, x, at["bounds"], at["seen"], None)) if attends else call(aten.neg.default, (x,))
        return {MADE: made}

    return part_of({X: "x", BOUNDS: "bounds", SEEN: "seen"}, body)


def within_a_window(attends: bool) -> Part:
    """A row form whose attention is within a window, or that attends to nothing."""

    def body(call: Call, at: dict[str, fx.Node]) -> Built:
        x = at["x"]
        made = call(WINDOW, (x, x, x, at["ranges"], at["spans"], None)) if attends else call(aten.neg.default, (x,))
        return {MADE: made}

    return part_of({X: "x", RANGES: "ranges", SPANS: "spans"}, body)


_FRAME_PICKS, _SAMPLE_PICKS = gathering(1), gathering(0)
_FRAMES, _SAMPLES = coarse_of(_FRAME_PICKS), coarse_of(_SAMPLE_PICKS)
_BY_FRAME, _BY_OTHER = reading(MODULATION), reading(Shared("other"))
_LASTING = frozenset({TEXT})
_NOTHING, _AS_COMPUTED = "nothing is computed from it alone", "keeps none in another dtype"
_NO_LAYER = "modulated_input: the queries of its first block come from no linear layer"
_NO_BUFFERS = "buffers: the block keeps no keys and values"
_NO_PICKS = "gather: no rows are picked from a smaller value alone"
_NO_HALVES = "writes: no value is written in two halves of one axis"
_NO_PREFIXES, _NO_WINDOW = "attention: it is over no prefixes of the keys", "attention: it is within no window"
_NO_PREFIX, _NO_MASK = "none of them was proved to be prefixes", "read as a mask and as nothing else"

_AXES, _NO_TOKENS = {"k": 3, "v": 3}, "keeps none of the video's tokens alone"
REFUSED: Mapping[str, tuple[Refused, ...]] = {
    "drop_buffers": (
        Refused("no buffers", attending(False), None, _NO_BUFFERS, attending(True), None),
    ),
    "modulated_input": (
        Refused("queries of text", projecting(False), X, _NO_LAYER, projecting(True), X),
        Refused("no projection", attending(False), X, _NO_LAYER, projecting(True), X),
    ),
    "use_prefixes": (
        Refused("a mask not proved", masked(), frozenset(), _NO_PREFIX, masked(), frozenset({"mask"})),
        Refused("no mask", unmasked(), frozenset({"mask"}), _NO_PREFIX, masked(), frozenset({"mask"})),
    ),
    "pick_inside": (
        Refused("another value", _BY_OTHER, _FRAMES, "the block reads none", _BY_FRAME, _FRAMES),
    ),
    "interleave": (
        Refused("overlapping halves", halves(0), None, _NO_HALVES, halves(), None),
        Refused("thirds", halves(step=3), None, _NO_HALVES, halves(), None),
        Refused("read too early", halves(early=True), None, _NO_HALVES, halves(), None),
    ),
    "hoist": (
        Refused("weights and views", prompting(False), _LASTING, _NOTHING, prompting(True), _LASTING),
        Refused("another text each call", prompting(True), frozenset(), _NOTHING, prompting(True), _LASTING),
    ),
    "expose_picks": (
        Refused("picks of samples", _SAMPLE_PICKS, _SAMPLES, _NO_PICKS, _FRAME_PICKS, _FRAMES),
    ),
    "strip_unused": (
        Refused("all is used", scaling(), None, "all of them are used", scaling(unread=True), None),
        Refused("all is wanted", scaling(), frozenset({MADE}), "all of them are used", unmasked(), frozenset({MADE})),
    ),
    "additive_masks": (
        Refused("the mask is a number too", masked(read_as_number=True), None, _NO_MASK, masked(), None),
        Refused("no attention reads it", unmasked(), None, _NO_MASK, masked(), None),
    ),
    "fill_rows": (
        Refused("nothing is kept", keeping(False), _AXES, _NO_TOKENS, keeping(True), _AXES),
        Refused("rows of the text too", keeping(True, "3+video"), _AXES, _NO_TOKENS, keeping(True), _AXES),
    ),
    "keep_encoded": (
        Refused("nothing is kept", keeping(False), "bfloat16", _AS_COMPUTED, keeping(True), "bfloat16"),
        Refused("the model's dtype", keeping(True), "model", _AS_COMPUTED, keeping(True), "float8"),
    ),
    "use_windows": (
        Refused("no attention", over_prefixes(False), None, _NO_PREFIXES, over_prefixes(True), None),
    ),
    "pick_keys": (
        Refused("no attention", within_a_window(False), (0, -1), _NO_WINDOW, within_a_window(True), (0, -1)),
    ),
}  # fmt: skip
