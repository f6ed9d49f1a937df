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
def test_every_block_is_in_one_segment_as_its_region_says(
    depth: int, drawn: list[tuple[int, int, bool]]
) -> None:
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
