"""Brings the regions of a policy to a model: which blocks are always computed, and which run under a decision.

before: `layers blocks[0..1] { compute }`, `layers blocks[2..-1] { keep residual }`
after:  regions (0, 1, None), (2, n - 1, residual)
refuses when: a region names blocks that the model does not have, or two regions name the same block.
"""

from __future__ import annotations

from mccompile import ir
from mccompile.capture.types import CapturedModel
from mccompile.language.depth import block_bounds, shared_blocks
from mccompile.lowering.errors import LayersNotFound, LayersOverlap
from mccompile.lowering.types import LoweredRegion
from mccompile.policy.groups import group_of


def partition(captured: CapturedModel, policy: ir.PolicyIR) -> tuple[LoweredRegion, ...]:
    """Returns the regions in order of depth. Blocks that the policy names in none form regions that are computed.

    Raises LayersNotFound (MC0501) and LayersOverlap (MC0505).
    """
    count = len(captured.blocks)
    owner = [-1] * count
    _refuse_overlaps(captured, policy)
    for number, region in enumerate(policy.regions):
        first, last = _bounds(region.where, count, policy.name, captured.model_class)
        for i in range(first, last + 1):
            owner[i] = number if region.keep else -1
    regions = []
    start = 0
    for i in range(1, count + 1):
        if i == count or owner[i] != owner[start]:
            named = policy.regions[owner[start]] if owner[start] >= 0 else None
            regions.append(_region(captured, start, i - 1, named))
            start = i
    return tuple(regions)


def _refuse_overlaps(captured: CapturedModel, policy: ir.PolicyIR) -> None:
    """`blocks[0..4]` and `blocks[-3..]` meet in some depths and not in others: the checker cannot tell."""
    count = len(captured.blocks)
    named = [region.where for region in policy.regions if isinstance(region.where, ir.Blocks)]
    for number, later in enumerate(named):
        for earlier in named[:number]:
            both = shared_blocks(earlier, later, count)
            if both is not None:
                raise LayersOverlap(policy.name, captured.model_class, earlier, later, count, both)


def _bounds(where: ir.Blocks | ir.Integration, count: int, policy: str, model: str) -> tuple[int, int]:
    if isinstance(where, ir.Integration):
        return 0, count - 1
    first, last = block_bounds(where, count)
    if not 0 <= first <= last < count:
        raise LayersNotFound(policy, model, where, count)
    return first, last


def _region(captured: CapturedModel, first: int, last: int, named: ir.Region | None) -> LoweredRegion:
    """Pairs each stream that leaves with the stream that it continues, block by block, from where that entered."""
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
    return LoweredRegion(first, last, named.keep, tuple(pairs), named.forecast, group_of(named))
