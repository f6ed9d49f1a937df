"""Regions of a policy on a model of known depth: a block in two regions is refused, with both places and the depth."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mccompile import ir
from mccompile.capture.types import CapturedModel
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.lowering.errors import LayersNotFound, LayersOverlap
from mccompile.lowering.regions import Split, claims
from mccompile.lowering.regions import partition as partition_split
from mccompile.lowering.split import split
from mccompile.lowering.types import LoweredRegion


def partition(captured: CapturedModel, policy: ir.PolicyIR) -> tuple[LoweredRegion, ...]:
    return partition_split(split(captured, policy), policy)


TEXT = """policy example {
  phase all { compute every 3 steps }
  layers blocks[0..4] { compute }
  layers blocks[-3..-1] { keep residual }
}
"""


def stack(depth: int) -> CapturedModel:
    """As much of a captured model as its regions need: blocks that hand one stream on."""
    blocks = tuple(
        SimpleNamespace(streams_in=(f"x{i}",), streams_out=(f"x{i + 1}",), continues=(f"x{i}",)) for i in range(depth)
    )
    ports = tuple(SimpleNamespace(name=f"x{i}", rows="video", token_axis=1) for i in range(depth + 1))
    found = SimpleNamespace(blocks=blocks, streams=ports, exit=(f"x{depth}",), model_class="Model")
    return cast(CapturedModel, found)


def test_ranges_that_meet_in_this_depth_are_refused_at_both_places() -> None:
    policy = load_policy(Source.of_text(TEXT, "example.policy"))
    with pytest.raises(LayersOverlap) as refused:
        partition(stack(6), policy)
    text = str(refused.value)
    assert "both claim blocks 3 to 4 of Model, which has 6 blocks" in text
    assert "--> example.policy:4:17" in text
    assert " 3 |   layers blocks[0..4] { compute }\n   |                 ---- blocks 0 to 4 of 6\n" in text
    assert " 4 |   layers blocks[-3..-1] { keep residual }\n   |                 ^^^^^^ blocks 3 to 5 of 6\n" in text


def test_the_same_ranges_apart_in_a_deeper_model() -> None:
    regions = partition(stack(8), load_policy(Source.of_text(TEXT)))
    assert [(r.first, r.last, r.keep) for r in regions] == [(0, 4, None), (5, 7, "residual")]


blocks = st.integers(-6, 6)


@given(st.integers(1, 6), st.lists(st.tuples(blocks, blocks, st.booleans()), max_size=3))
def test_every_block_is_in_one_segment_as_its_region_says(depth: int, drawn: list[tuple[int, int, bool]]) -> None:
    regions = tuple(ir.Region(ir.Blocks(first, last), "residual" if keep else None) for first, last, keep in drawn)
    policy = SimpleNamespace(name="p", regions=regions, phases=(), signals=())
    named = [range(f % depth if f < 0 else f, (b % depth if b < 0 else b) + 1) for f, b, _ in drawn]
    inside = all(-depth <= f < depth and -depth <= b < depth and r for (f, b, _), r in zip(drawn, named, strict=True))
    apart = sum(map(len, named)) == len(set().union(*named))
    if not inside:
        with pytest.raises((LayersNotFound, LayersOverlap)):
            partition(stack(depth), cast(ir.PolicyIR, policy))
        return
    if not apart:
        with pytest.raises(LayersOverlap):
            partition(stack(depth), cast(ir.PolicyIR, policy))
        return
    found = partition(stack(depth), cast(ir.PolicyIR, policy))
    kept = {block for where, (_, _, keep) in zip(named, drawn, strict=True) if keep for block in where}
    assert [b for r in found for b in range(r.first, r.last + 1)] == list(range(depth))
    assert {b for r in found if r.keep for b in range(r.first, r.last + 1)} == kept


@pytest.mark.parametrize(("depth", "front", "rear"), [(2, 1, 1), (7, 3, 4), (10, 5, 5), (30, 15, 15)])
def test_shares_of_the_depth_meet_without_a_gap(depth: int, front: int, rear: int) -> None:
    text = "layers blocks[..50%] { keep residual } layers blocks[50%..] { keep output }"
    policy = load_policy(Source.of_text(f"policy p {{ phase a {{ compute every 2 steps }} {text} }}"))
    found = partition(stack(depth), policy)
    assert [(r.last - r.first + 1, r.keep) for r in found] == [(front, "residual"), (rear, "output")]


def test_a_share_of_less_than_a_block_is_refused() -> None:
    text = "policy p { phase a { compute every 2 steps } layers blocks[..20%] { keep residual } }"
    with pytest.raises(LayersNotFound, match=r"`layers blocks\[0..20%\]` of policy `p` matches no range") as caught:
        partition(stack(4), load_policy(Source.of_text(text)))
    assert "use indices from 0 to 3, or count from the end with -1 to -4" in str(caught.value)
    assert caught.value.diagnostics[0].span_label() == "not within blocks 0 to 3"


def test_streams_are_paired_by_what_they_continue() -> None:
    """Two streams without rows change places between blocks: each is paired with itself, not with its like."""
    names = (("text0", "image0"), ("image1", "text1"), ("text2", "image2"))
    blocks = tuple(
        SimpleNamespace(streams_in=before, streams_out=after, continues=before[::-1])
        for before, after in pairwise(names)
    )
    ports = tuple(SimpleNamespace(name=n, rows="", token_axis=None) for pair in names for n in pair)
    found = SimpleNamespace(blocks=blocks, streams=ports, exit=("text2", "image2"), model_class="Model")
    regions = (ir.Region(ir.Blocks(0, -1), "residual"),)
    policy = cast(ir.PolicyIR, SimpleNamespace(name="p", regions=regions, phases=(), signals=()))
    (region,) = partition(cast(CapturedModel, found), policy)
    assert region.pairs == (("text0", "text2"), ("image0", "image2"))


APART = """policy example {
  layers front = blocks[0..2] { keep residual }
  layers back  = blocks[3..-1] { keep residual }
  phase all { front: reuse chunk as taylor(residual) while rel_l1(latent) < 0.1
              back:  compute every 3 steps }
}
"""


def test_a_stand_in_of_a_rule_is_of_the_regions_that_the_rule_decides() -> None:
    """What a region keeps follows from its own rules: a second residual that no rule reads would be memory for nothing.
    """  # fmt: skip
    front, back = partition(stack(8), load_policy(Source.of_text(APART)))
    assert (front.group, back.group) == ("front", "back")
    assert len(front.of_rules) == 1
    assert back.of_rules == ()


EVERYTHING = """policy example {
  layers blocks[*].attn { keep residual }
  layers blocks[1..2].ffn { keep output }
  layers blocks[-1].cross { keep residual }
  phase all { compute every 3 steps }
}
"""


def test_each_block_says_which_regions_name_it() -> None:
    """A block as a whole, or sublayers of it by name; regions are numbered as they are written."""
    found = claims(stack(4), load_policy(Source.of_text(EVERYTHING)))
    assert found == ({"attn": 0}, {"attn": 0, "ffn": 1}, {"attn": 0, "ffn": 1}, {"attn": 0, "cross": 2})
    policy = load_policy(Source.of_text(TEXT))
    assert claims(stack(8), policy) == ({None: 0},) * 5 + ({None: 1},) * 3


def regions(*found: ir.Region, depth: int = 3) -> tuple[CapturedModel, ir.PolicyIR]:
    policy = SimpleNamespace(name="p", regions=found, phases=(), signals=())
    return stack(depth), cast(ir.PolicyIR, policy)


@pytest.mark.parametrize("whole", [ir.WholeModel(), ir.Integration()])
@pytest.mark.parametrize("first", [True, False])
def test_layers_within_the_model_take_their_blocks_from_it(whole: ir.WholeModel | ir.Integration, first: bool) -> None:
    """Wherever they are written. What the model keeps is what it makes in the end, and no stream of a block."""
    model, own = ir.Region(whole, "residual"), ir.Region(ir.Blocks(1, 1), "output")
    captured, policy = regions(*((model, own) if first else (own, model)))
    assert [list(c.values()) for c in claims(captured, policy)] == [[not first], [first], [not first]]
    found = partition(captured, policy)
    assert [(r.first, r.last, r.keep) for r in found] == [(0, 0, "increment"), (1, 1, "output"), (2, 2, "increment")]


def test_the_gap_to_the_other_branch_is_kept_of_the_model() -> None:
    (found,) = partition(*regions(ir.Region(ir.WholeModel(), "gap")))
    assert found.keep == "increment"
    assert found.pairs == (("x0", "x3"),)
    (computed,) = partition(*regions(ir.Region(ir.WholeModel(), None)))
    assert computed.keep is None


def test_a_region_knows_what_its_layers_say() -> None:
    stand_in = ir.Forecast(((ir.Const(1.0),), (ir.Const(2.0), ir.Const(-1.0))))
    near = ir.Region(ir.Blocks(0, 0), "residual", name="front", nearest=ir.SourceRef("latent"))
    rear = ir.Region(ir.Blocks(1, 2), "residual", stand_in, name="rear")
    front, back = partition(*regions(near, rear))
    assert (front.group, front.nearest, front.forecast, front.inside) == ("front", "latent", None, False)
    assert (back.group, back.nearest, back.forecast, back.of_rules) == ("rear", None, stand_in, ())


def test_what_a_sublayer_has_made_alone_is_inside() -> None:
    captured, policy = regions(ir.Region(ir.Blocks(0, 0), "output"))
    parts = split(captured, policy)
    inside = Split(parts.captured, parts.pieces, parts.owners, frozenset({"x1"}))
    first, rest = partition_split(inside, policy)
    assert (first.inside, rest.inside) == (True, False)


def test_a_stream_that_leaves_no_region_is_not_kept() -> None:
    """A stream that only the next block reads, one that nothing reads, and one that the model gives."""
    blocks = (
        SimpleNamespace(streams_in=("x0",), streams_out=("x1", "y1", "z1"), continues=("x0", "", "")),
        SimpleNamespace(streams_in=("x1", "y1"), streams_out=("x2",), continues=("x1",)),
    )
    found = SimpleNamespace(blocks=blocks, streams=(), exit=("x2",), model_class="Model")
    owned = Split(cast(CapturedModel, found), (), (0, None), frozenset())
    _, policy = regions(ir.Region(ir.Blocks(0, 0), "residual"))
    kept, rest = partition_split(owned, policy)
    assert kept.pairs == (("x0", "x1"), ("", "y1"))
    assert rest.pairs == (("x1", "x2"),)


@pytest.mark.parametrize(
    "where", [ir.Blocks(3, 3), ir.Blocks(-4, 0), ir.Blocks(2, 1), ir.Sublayers(ir.Blocks(0, 3), "ffn")]
)
def test_blocks_that_the_model_does_not_have_are_refused(where: ir.Blocks | ir.Sublayers) -> None:
    captured, policy = regions(ir.Region(where, "residual"))
    with pytest.raises(LayersNotFound, match="use indices from 0 to 2, or count from the end with -1 to -3"):
        claims(captured, policy)


@pytest.mark.parametrize("where", [ir.Blocks(0, 0), ir.Blocks(2, 2), ir.Blocks(-3, -1)])
def test_the_ends_of_the_model_are_in_it(where: ir.Blocks) -> None:
    captured, policy = regions(ir.Region(where, "residual"))
    assert any(claims(captured, policy))


def test_one_block_in_two_regions_is_named() -> None:
    policy = load_policy(Source.of_text(TEXT.replace("0..4", "0..1").replace("-3..-1", "-1"), "example.policy"))
    with pytest.raises(LayersOverlap) as refused:
        partition(stack(2), policy)
    text = str(refused.value)
    assert "both claim block 1 of Model, which has 2 blocks" in text
    assert "blocks 0 to 1 of 2" in text
    assert "^^ block 1 of 2" in text


WEIGHTS = ((ir.Const(1.0),), (ir.Const(2.0), ir.Const(-1.0)), (ir.Const(3.0),))


def test_a_region_keeps_as_many_results_as_its_stand_ins_read() -> None:
    plain = LoweredRegion(0, 1, "residual", ())
    assert (plain.forecasts, plain.depth, plain.passes, plain.inside) == ((), 1, 0, False)
    two, one = ir.Forecast(WEIGHTS), ir.Forecast(WEIGHTS[:1], WEIGHTS)
    assert LoweredRegion(0, 1, "residual", (), two).depth == 2
    assert LoweredRegion(0, 1, "residual", (), one).depth == 1
    both = LoweredRegion(0, 1, "residual", (), one, of_rules=(two,))
    assert (both.forecasts, both.depth, both.passes) == ((one, two), 2, 2)
