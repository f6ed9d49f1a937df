"""Brings the regions of a policy to a model: which blocks are always computed, and which run under a decision.

before: `layers blocks[0..1] { compute }`, `layers blocks[2..-1] { keep residual }`
after:  regions (0, 1, None), (2, n - 1, residual)
refuses when: a region names blocks that the model does not have, or two regions name the same block or sublayer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mccompile import ir
from mccompile.capture.types import CapturedModel
from mccompile.language.depth import block_bounds, blocks_of, part_of, shared_blocks
from mccompile.language.walk import all_rules, own_stand_ins
from mccompile.lowering.errors import LayersNotFound, LayersOverlap
from mccompile.lowering.types import LoweredRegion, Piece
from mccompile.policy.groups import group_of, policy_of, views


@dataclass(frozen=True, slots=True)
class Split:
    """A captured model whose blocks are cut where a policy needs it. pieces: what each of its blocks is.

    owners: for each of its blocks the number of the region that keeps it; None where it is always computed. inside:
    streams of which a sublayer has made something that is still to be added to them. watched: which of its blocks are
    the block, or the sublayer, whose results rules look at.
    """

    captured: CapturedModel
    pieces: tuple[Piece, ...]
    owners: tuple[int | None, ...]
    inside: frozenset[str]
    watched: tuple[int, ...] = ()


def claims(captured: CapturedModel, policy: ir.PolicyIR) -> tuple[Mapping[ir.SublayerName | None, int], ...]:
    """Returns for each block which regions name it, by number: as a whole (None), or a sublayer of it.

    Raises LayersNotFound (MC0501) and LayersOverlap (MC0505).
    """
    count = len(captured.blocks)
    _refuse_overlaps(captured, policy)
    found: tuple[dict[ir.SublayerName | None, int], ...] = tuple({} for _ in range(count))
    outermost_first = sorted(enumerate(policy.regions), key=lambda one: blocks_of(one[1].where) is not None)
    for number, region in outermost_first:  # layers within the model take their blocks from it
        blocks = blocks_of(region.where)
        first, last = (0, count - 1) if blocks is None else block_bounds(blocks, count)
        if isinstance(region.where, ir.Blocks | ir.Sublayers) and not 0 <= first <= last < count:
            raise LayersNotFound(policy.name, captured.model_class, region.where, count)
        for i in range(first, last + 1):
            found[i][part_of(region.where)] = number
    return found


def partition(split: Split, policy: ir.PolicyIR) -> tuple[LoweredRegion, ...]:
    """Returns the regions in order of depth. Blocks that the policy names in none form regions that are computed."""
    regions = []
    start = 0
    count = len(split.owners)
    for i in range(1, count + 1):
        if i == count or split.owners[i] != split.owners[start]:
            owner = split.owners[start]
            named = None if owner is None else policy.regions[owner]
            regions.append(_region(split, start, i - 1, named, policy))
            start = i
    return tuple(regions)


def _refuse_overlaps(captured: CapturedModel, policy: ir.PolicyIR) -> None:
    """`blocks[0..4]` and `blocks[-3..]` meet in some depths and not in others: the checker cannot tell."""
    count = len(captured.blocks)
    named = [region.where for region in policy.regions if isinstance(region.where, ir.Blocks | ir.Sublayers)]
    for number, later in enumerate(named):
        for earlier in named[:number]:
            both = shared_blocks(earlier, later, count)
            if both is not None:
                raise LayersOverlap(policy.name, captured.model_class, earlier, later, count, both)


def _region(
    split: Split, first: int, last: int, named: ir.Region | None, policy: ir.PolicyIR
) -> LoweredRegion:
    """Pairs each stream that leaves with the stream that it continues, block by block, from where that entered."""
    captured = split.captured
    blocks = captured.blocks[first : last + 1]
    before = {made: source for b in blocks for made, source in zip(b.streams_out, b.continues, strict=True)}
    later = {s for b in captured.blocks[last + 1 :] for s in b.streams_in} | set(captured.exit)
    pairs = []
    for out in (s for s in before if s in later):
        source = out
        while source in before:
            source = before[source]
        pairs.append((source, out))
    if named is None:
        return LoweredRegion(first, last, None, tuple(pairs))
    inside = any(made in split.inside for _, made in pairs)
    keep = named.keep
    if keep is not None and (keep == "gap" or blocks_of(named.where) is None):
        keep = "increment"
    group = group_of(named)
    seen = [policy_of(policy, view) for view in views(policy) if view.group == group and keep is not None]
    of_rules = tuple(dict.fromkeys(one for own in seen for rule in all_rules(own) for one in own_stand_ins(rule)))
    nearest = None if named.nearest is None else named.nearest.name
    return LoweredRegion(first, last, keep, tuple(pairs), named.forecast, group, inside, of_rules, nearest)
