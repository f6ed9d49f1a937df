"""Blocks that are cut at their sublayers, two blocks of a small graph: the pieces, their owners, what they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import fx

from mccompile import ir
from mccompile.capture.part import Buffer, Part, Stream
from mccompile.capture.types import (
    Beside,
    BlockKind,
    BlockSite,
    BufferSpec,
    CapturedModel,
    ModulatedInput,
    Port,
    names_at,
)
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.lowering.errors import LayersNotFound, SublayerNotFound
from mccompile.lowering.regions import Split
from mccompile.lowering.split import split
from tests.lowering.refusing import MADE, TEXT, X, part_of
from tests.lowering.test_sublayers import (
    At,
    Body,
    Writer,
    earlier_sizes,
    gate_of_the_stream,
    kept_keys,
    two_attentions,
    usual,
)

aten = torch.ops.aten
NO_BUFFERS: tuple[str, ...] = ()


def form(body: Body, buffers: tuple[str, ...]) -> Part:
    def written(call: Callable[..., fx.Node], at: dict[str, fx.Node]) -> Any:
        return {MADE: body(Writer(call), at)}

    return part_of({X: "x", TEXT: "text"} | {Buffer(name): name for name in buffers}, written)


def allocation(buffers: tuple[str, ...]) -> Part:
    def body(call: Callable[..., fx.Node], at: dict[str, fx.Node]) -> Any:
        length = call(aten.sym_size.int, (at["x"], 2))
        return {Buffer(name): call(aten.new_zeros.default, (at["x"], [1, 1, length, 4])) for name in buffers}

    return part_of({X: "x", TEXT: "text"}, body)


def model(body: Body, buffers: tuple[str, ...] = NO_BUFFERS, other: Body | None = None, **more: Any) -> CapturedModel:
    """Two blocks of one kind, from `x` to `made` to `last`. other: what its form on selected rows computes instead."""
    specs = tuple(BufferSpec(name, 2, "video") for name in buffers)
    kind = BlockKind(
        form(body, buffers), form(other or body, buffers), allocation(buffers), (), specs,
        ModulatedInput("fed", 2, Beside(0, 0)),
    )  # fmt: skip
    names = ("x", "made", "last")
    ports = tuple(Port(name, 2, "video", frozenset({"latent"}), beside=Beside(0, 0)) for name in names)
    sites = tuple(
        BlockSite(i, f"blocks.{i}", 0, (names[i],), (names[i + 1],), (names[i],), ("text",), ()) for i in range(2)
    )
    empty: dict[str, Any] = dict.fromkeys(("module", "in_spec", "out_spec", "prelude", "gather", "postlude", "grid"))
    empty |= dict.fromkeys(
        ("inputs", "constants", "sources", "gathered", "row_keys", "refusals", "samples", "fixed"), ()
    )
    usual_facts = {
        "model_class": "Model", "entry": ("x",), "exit": ("last",), "shared": (Port("text", None, "", frozenset()),),
        "streams": ports, "kinds": (kind,), "blocks": sites, "opaque": "", "unbatched": "",
    }  # fmt: skip
    return CapturedModel(**(empty | usual_facts | more))


def cut(captured: CapturedModel, layers: str, phase: str = "compute every 2 steps") -> Split:
    return split(captured, load_policy(Source.of_text(f"policy p {{ phase a {{ {phase} }} {layers} }}")))


def results(captured: CapturedModel, form_of: str = "full") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What leaves the last block, and what is kept, by the buffer and the block."""
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(1, 1, 3, 4, generator=generator) for name in ("x", "text")}
    kept: dict[str, torch.Tensor] = {}
    for site in captured.blocks:
        kind = captured.kinds[site.kind]
        named = cast("dict[Any, str]", names_at(kind, site))
        allocated = kind.allocate(*(values[named.get(o, "text")] for o in kind.allocate.takes))
        own = dict(zip(kind.allocate.gives, allocated, strict=True))
        part = cast(Part, getattr(kind, form_of))
        made = part(*(own[o] if isinstance(o, Buffer) else values[named[o]] for o in part.takes))
        values |= {named[o]: value for o, value in zip(part.gives, made, strict=True)}
        kept |= {f"{o.name} {site.path.split('.')[1]}": value for o, value in own.items() if isinstance(o, Buffer)}
    return values[captured.exit[0]], kept


APART = " ".join(f"layers blocks[*].{part} {{ keep residual }}" for part in ("attn", "cross", "ffn"))


def test_every_sublayer_is_a_piece_of_its_region() -> None:
    whole = model(usual)
    made = cut(whole, APART)
    parts = ("attn", "cross", "ffn")
    assert [(p.block, p.sublayers) for p in made.pieces] == [(i, (part,)) for i in range(2) for part in parts]
    assert made.owners == (0, 1, 2) * 2
    assert (made.inside, made.watched) == (frozenset(), ())
    assert [b.path for b in made.captured.blocks] == [f"blocks.{i}.{part}" for i in range(2) for part in parts]
    assert [b.index for b in made.captured.blocks] == list(range(6))
    assert len(made.captured.kinds) == 3  # pieces of one kind at the same place are of one kind
    streams = ["x", "made_after_attn", "made_after_cross", "made", "last_after_attn", "last_after_cross", "last"]
    assert [p.name for p in made.captured.streams] == streams
    assert all(p.rows == "video" and p.beside == Beside(0, 0) for p in made.captured.streams)
    assert [b.continues for b in made.captured.blocks] == [(name,) for name in streams[:-1]]
    assert [b.shared for b in made.captured.blocks] == [(), ("text",), ()] * 2
    assert torch.equal(results(made.captured)[0], results(whole)[0])
    assert torch.equal(results(made.captured, "partial")[0], results(whole)[0])


def test_what_no_region_keeps_apart_stays_one_piece() -> None:
    made = cut(model(usual), "layers blocks[1].ffn { keep residual } layers blocks[0].attn { compute }")
    assert [(p.block, p.sublayers) for p in made.pieces] == [(0, ()), (1, ("attn", "cross")), (1, ("ffn",))]
    assert made.owners == (None, None, 1)
    assert torch.equal(results(made.captured)[0], results(model(usual))[0])


def test_within_the_model_the_rest_of_a_block_is_the_models() -> None:
    policy = load_policy("policy p { phase a { compute every 2 steps } layers blocks[*] { keep residual } }")
    own = (ir.Region(ir.WholeModel(), "residual"), ir.Region(ir.Sublayers(ir.Blocks(0, 0), "cross"), "residual"))
    made = split(model(usual), replace(policy, regions=own))
    assert [(p.block, p.sublayers) for p in made.pieces] == [(0, ("attn",)), (0, ("cross",)), (0, ("ffn",)), (1, ())]
    assert made.owners == (0, 1, 0, 0)


def test_an_output_is_kept_in_front_of_its_gate() -> None:
    """The piece behind it adds what was made; the value in between is a stream of its own, and inside."""
    whole = model(gate_of_the_stream)
    made = cut(whole, "layers blocks[*].attn { keep output }")
    assert [(p.block, p.sublayers) for p in made.pieces] == [(i, p) for i in range(2) for p in (("attn",), ("ffn",))]
    assert made.owners == (0, None) * 2
    assert made.inside == {"made_of_attn", "last_of_attn"}
    assert [b.streams_out for b in made.captured.blocks] == [("made_of_attn",), ("made",), ("last_of_attn",), ("last",)]
    assert [b.continues for b in made.captured.blocks] == [("",), ("x",), ("",), ("made",)]
    assert [b.path.partition(".")[2] for b in made.captured.blocks] == ["0.attn", "0.attn+ffn", "1.attn", "1.attn+ffn"]
    for form_of in ("full", "partial"):
        assert torch.equal(results(made.captured, form_of)[0], results(whole)[0])


def test_each_piece_keeps_the_keys_that_it_makes() -> None:
    whole = model(kept_keys, ("k", "v"))
    made = cut(whole, "layers blocks[*].attn { keep residual } layers blocks[*].ffn { keep output }")
    assert [tuple(b.name for b in kind.buffers) for kind in made.captured.kinds] == [("k",), ("v",), ()]
    (value, kept), (wanted, all_kept) = results(made.captured), results(whole)
    assert torch.equal(value, wanted)
    assert kept.keys() == all_kept.keys() == {"k 0", "v 0", "k 1", "v 1"}
    assert all(torch.equal(kept[name], all_kept[name]) for name in kept)


def test_the_modulated_input_is_of_the_piece_that_has_it() -> None:
    made = cut(
        model(gate_of_the_stream), "layers blocks[*].attn { keep residual } layers blocks[*].ffn { keep residual }"
    )
    first, second = (kind.modulated for kind in made.captured.kinds)
    assert first == "its first sublayer attends to no video tokens"
    assert isinstance(second, ModulatedInput)


WATCHING = "reuse chunk while l1(kept(blocks[1]{part}.residual), kept(blocks[1]{part}.residual, 2)) < 1"


@pytest.mark.parametrize(
    ("part", "pieces", "watched"),
    [("", [(0, ()), (1, ())], (1,)),
     (".cross", [(0, ()), (1, ("attn",)), (1, ("cross",)), (1, ("ffn",))], (2,)),
     (".ffn", [(0, ()), (1, ("attn", "cross")), (1, ("ffn",))], (2,))],
)  # fmt: skip
def test_what_rules_look_at_is_a_piece(part: str, pieces: list[Any], watched: tuple[int, ...]) -> None:
    made = cut(model(usual), "layers blocks[*] { keep residual }", WATCHING.replace("{part}", part))
    assert [(p.block, p.sublayers) for p in made.pieces] == pieces
    assert made.watched == watched
    assert set(made.owners) == {0}
    assert torch.equal(results(made.captured)[0], results(model(usual))[0])


def test_a_whole_block_that_is_cut_for_others_is_looked_at_in_all_its_pieces() -> None:
    watching = WATCHING.replace("{part}", "")
    made = cut(model(usual), "layers blocks[1].attn { keep residual }", watching)
    assert [(p.block, p.sublayers) for p in made.pieces] == [(0, ()), (1, ("attn",)), (1, ("cross", "ffn"))]
    assert made.watched == (1, 2)


def test_the_first_block_may_be_looked_at() -> None:
    watching = WATCHING.replace("{part}", "").replace("[1]", "[0]")
    assert cut(model(usual), "layers blocks[*] { keep residual }", watching).watched == (0,)


def odd(w: Writer, at: At) -> fx.Node:
    return w.mul(at["x"], at["text"])


ATTN, OUT = "blocks[*].attn { keep residual }", "blocks[*].attn { keep output }"
REFUSED: dict[str, tuple[CapturedModel, str, str]] = {
    "no such sublayer": (
        model(two_attentions), "blocks[*].cross { keep residual }", "has no `cross`, but attn and ffn",
    ),
    "no sums": (model(odd), ATTN, "cannot be cut into sublayers: `x` leaves it otherwise"),
    "an output of two sums": (
        model(two_attentions), OUT, "keeps no output of it: its attn adds more than one value to `x`",
    ),
    "other sublayers of rows": (
        model(usual, other=two_attentions), ATTN,
        "cannot be cut into sublayers: on selected rows it has attn, ffn, on all attn, cross, ffn",
    ),
    "the model's own code": (model(usual, opaque="it loops"), ATTN, "cannot be cut into sublayers: it loops"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_a_block_that_is_not_cut_says_why(how: str) -> None:
    captured, layers, why = REFUSED[how]
    with pytest.raises(SublayerNotFound) as refused:
        cut(captured, f"layers {layers}")
    assert f"names no sublayer of Model: `blocks.0` {why}" in str(refused.value)


def test_so_does_one_that_rules_look_at() -> None:
    with pytest.raises(
        SublayerNotFound, match=r"`layers blocks\[1\].cross` of policy `p` .* `blocks.1` has no `cross`"
    ):
        cut(model(two_attentions), "layers blocks[*] { keep residual }", WATCHING.replace("{part}", ".cross"))
    with pytest.raises(LayersNotFound, match=r"`layers blocks\[2\]` of policy `p` matches no range of Model"):
        cut(model(usual), "layers blocks[*] { keep residual }", WATCHING.replace("{part}", "").replace("[1]", "[2]"))


def test_a_stream_that_a_block_begins_has_nothing_added_to_it() -> None:
    whole = model(usual)
    (kind,), sites = whole.kinds, whole.blocks
    begun = replace(kind, full=replace(kind.full, gives=(*kind.full.gives, Stream("new"))))
    blocks = tuple(replace(b, streams_out=(*b.streams_out, "new"), continues=(*b.continues, "")) for b in sites)
    with pytest.raises(SublayerNotFound, match=r"`blocks\.0` cannot be cut into sublayers: `new` is no stream with"):
        cut(replace(whole, kinds=(begun,), blocks=blocks), f"layers {ATTN}")


def test_other_sublayers_do_not_matter_to_one_that_is_cut_or_looked_at() -> None:
    """The attention of these blocks has no output of its own; nobody keeps that."""
    made = cut(model(two_attentions), "layers blocks[*].ffn { keep output }")
    assert [p.sublayers for p in made.pieces] == [("attn",), ("ffn",), ()] * 2  # the last one adds what was made
    looked_at = cut(model(two_attentions), "layers blocks[*] { keep residual }", WATCHING.replace("{part}", ".attn"))
    assert looked_at.watched == (1,)


def test_a_block_of_one_sublayer_is_one_piece() -> None:
    whole = model(lambda w, at: w.add(at["x"], w.attend(at["x"], at["x"])))
    made = cut(whole, f"layers {ATTN}")
    assert [(p.block, p.sublayers) for p in made.pieces] == [(0, ()), (1, ())]
    assert made.owners == (0, 0)
    looked_at = cut(whole, "layers blocks[*] { keep residual }", WATCHING.replace("{part}", ".attn"))
    assert looked_at.watched == (1,)


def test_pieces_ask_for_the_size_of_the_stream_that_they_have() -> None:
    whole = model(earlier_sizes)
    made = cut(whole, f"layers {ATTN}")
    assert len(made.pieces) == 4
    assert all(len(kind.full.takes) <= 2 for kind in made.captured.kinds)
    assert torch.equal(results(made.captured)[0], results(whole)[0])
