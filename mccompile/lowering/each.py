"""Layers whose blocks decide apart, on a model of known depth: a region of its own for each block.

before: `layers front = each blocks[1..2] { keep residual }`, `phase late { front: RULE }`
after:  regions `front[1]` and `front[2]`, and in the phase `front[1]: RULE`, `front[2]: RULE`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mccompile import ir
from mccompile.language.depth import block_bounds, blocks_of

_UNNAMED = "blocks"


def apart(policy: ir.PolicyIR, depth: int) -> ir.PolicyIR:
    """The policy with a region for each block that decides apart. depth: the number of the model's blocks.

    A range that does not lie in the model stays as it is: it is refused with the others.
    """
    if not any(region.each for region in policy.regions):
        return policy
    of = {number: tuple(_regions(region, depth)) for number, region in enumerate(policy.regions)}
    named: dict[str, list[str]] = {}
    for number, region in enumerate(policy.regions):
        if region.name is not None:
            named.setdefault(region.name, []).extend(one.name for one in of[number] if one.name is not None)
    return replace(
        policy, regions=tuple(one for number in of for one in of[number]),
        phases=tuple(_phase(phase, named) for phase in policy.phases),
    )  # fmt: skip


def _regions(region: ir.Region, depth: int) -> Iterator[ir.Region]:
    blocks = blocks_of(region.where)
    if blocks is None or not region.each or not _lie_within(blocks, depth):
        yield region
        return
    first, last = block_bounds(blocks, depth)
    for block in range(first, last + 1):
        share = block / max(depth - 1, 1)
        alone, called = ir.Blocks(block, block, at=region.where.at), f"{region.name or _UNNAMED}[{block}]"
        if isinstance(region.where, ir.Sublayers):
            part = ir.Sublayers(alone, region.where.part, at=region.where.at)
            yield replace(region, where=part, name=f"{called}.{region.where.part}", each=None, depth=share)
        else:
            yield replace(region, where=alone, name=called, each=None, depth=share)


def _lie_within(blocks: ir.Blocks, depth: int) -> bool:
    first, last = block_bounds(blocks, depth)
    return 0 <= first <= last < depth


def _phase(phase: ir.Phase, named: Mapping[str, list[str]]) -> ir.Phase:
    branches = tuple(replace(one, regions=_rules(one.regions, named)) for one in phase.branches or ())
    return replace(phase, regions=_rules(phase.regions, named), branches=branches or None)


def _rules(rules: tuple[ir.RegionRule, ...] | None, named: Mapping[str, list[str]]) -> tuple[ir.RegionRule, ...] | None:
    """The rules of regions; that of a name for each of its regions."""
    if rules is None:
        return None
    return tuple(replace(rule, region=name) for rule in rules for name in dict.fromkeys(named[rule.region]))
