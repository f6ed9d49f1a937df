"""Layers whose blocks decide apart: which regions and rules come of them, in a model of known depth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mccompile import ir
from mccompile.language.load import load_policy
from mccompile.lowering.each import apart

EVERY = ir.Every(ir.Const(2.0))
OTHER = ir.Every(ir.Const(3.0))
BASE = load_policy("policy p { phase a { compute every 2 steps } layers blocks[*] { keep residual } }")


def named(policy: ir.PolicyIR) -> list[tuple[str | None, int | float, float | None]]:
    found = []
    for region in policy.regions:
        where = region.where.blocks if isinstance(region.where, ir.Sublayers) else region.where
        assert isinstance(where, ir.Blocks)
        assert where.first == where.last
        assert region.each is None
        found.append((region.name, where.first, region.depth))
    return found


def of(*regions: ir.Region, depth: int) -> ir.PolicyIR:
    return apart(replace(BASE,
                         regions=regions), depth)  # fmt: skip


def test_every_block_of_the_range_is_a_region_that_knows_its_depth() -> None:
    found = of(ir.Region(ir.Blocks(0, 2), "residual", each=True), depth=5)
    assert named(found) == [("blocks[0]", 0, 0.0), ("blocks[1]", 1, 0.25), ("blocks[2]", 2, 0.5)]
    assert all(region.keep == "residual" for region in found.regions)
    whole = of(ir.Region(ir.Blocks(-2, -1), "output", name="rear", each=True), depth=3)
    assert named(whole) == [("rear[1]", 1, 0.5), ("rear[2]", 2, 1.0)]
    assert named(of(ir.Region(ir.Blocks(0, -1), "output", each=True), depth=1)) == [("blocks[0]", 0, 0.0)]


def test_so_is_a_part_of_every_block() -> None:
    region = ir.Region(ir.Sublayers(ir.Blocks(1, 2), "ffn"), "residual", each=True)
    found = of(region, depth=3)
    assert named(found) == [("blocks[1].ffn", 1, 0.5), ("blocks[2].ffn", 2, 1.0)]
    assert [r.where.part for r in found.regions if isinstance(r.where, ir.Sublayers)] == ["ffn", "ffn"]


@pytest.mark.parametrize("where", [ir.Blocks(1, 4), ir.Blocks(-5, 1), ir.Blocks(2, 1)])
def test_a_range_that_does_not_lie_in_the_model_stays(where: ir.Blocks) -> None:
    """It is refused with the others."""
    region = ir.Region(where, "residual", each=True)
    assert of(region, depth=4).regions == (region,)


def test_the_last_block_lies_in_the_model() -> None:
    assert len(of(ir.Region(ir.Blocks(3, 3), "residual", each=True), depth=4).regions) == 1
    assert of(ir.Region(ir.Blocks(3, 3), "residual", each=True), depth=4).regions[0].name == "blocks[3]"


def test_layers_of_the_whole_model_have_no_blocks_apart() -> None:
    region = ir.Region(ir.WholeModel(), "residual", each=True)
    assert of(region, depth=2).regions == (region,)


def test_other_layers_stay_beside_them() -> None:
    alone = ir.Region(ir.Blocks(0, 0), "output", name="first")
    found = of(alone, ir.Region(ir.Blocks(1, 2), "residual", each=True), depth=3)
    assert found.regions[0] == alone
    assert [r.name for r in found.regions] == ["first", "blocks[1]", "blocks[2]"]
    assert apart(BASE, 3) is BASE


def test_the_rule_of_a_name_is_that_of_each_of_its_blocks() -> None:
    """In a phase, and in what a phase says for one branch. A rule for other layers stays one rule."""
    regions = (ir.Region(ir.Blocks(0, 0), "output", name="first"),
               ir.Region(ir.Blocks(1, 2), "residual", name="front", each=True))  # fmt: skip
    own = (ir.RegionRule("first", EVERY), ir.RegionRule("front", OTHER))
    branch = ir.BranchRule("uncond", EVERY, (ir.RegionRule("front", EVERY),))
    (phase,) = BASE.phases
    phases = (replace(phase, regions=own, branches=(branch,)), phase)
    found = apart(replace(BASE, regions=regions, phases=phases), 4)
    first, second = found.phases
    assert first.regions == (
        ir.RegionRule("first", EVERY), ir.RegionRule("front[1]", OTHER), ir.RegionRule("front[2]", OTHER),
    )  # fmt: skip
    assert first.branches is not None
    assert first.branches[0].regions == (ir.RegionRule("front[1]", EVERY), ir.RegionRule("front[2]", EVERY))
    assert second == phase
    assert (second.regions, second.branches) == (None, None)


def test_several_layers_of_one_name_have_one_rule() -> None:
    """Blocks of both keep apart what they decide, and none has its rule twice."""
    regions = tuple(ir.Region(ir.Blocks(i, i), "residual", name="front", each=i > 0 or None) for i in range(3))
    phases = (replace(BASE.phases[0], regions=(ir.RegionRule("front", EVERY),)),)
    (phase,) = apart(replace(BASE, regions=(*regions, regions[0]), phases=phases), 4).phases
    assert phase.regions is not None
    assert [rule.region for rule in phase.regions] == ["front", "front[1]", "front[2]"]
