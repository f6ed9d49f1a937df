"""Where the result of a block that rules look at lies: the streams that enter and leave it.

before: rules look at `kept(blocks[50%].attn.residual)`, and the blocks are cut around this sublayer
after:  the names of two streams, whose difference is its residual
refuses when: the block is computed at other steps than the rules that look at it count, or for some tokens alone
"""

from __future__ import annotations

from mccompile import ir
from mccompile.capture.types import CapturedModel, root_of
from mccompile.language.walk import block_read
from mccompile.lowering.sources import BlockStreams
from mccompile.lowering.types import LoweredRegion
from mccompile.policy.facts import selects_within_chunks
from mccompile.policy.groups import policy_of, views


def block_streams(
    captured: CapturedModel, policy: ir.PolicyIR, regions: tuple[LoweredRegion, ...], watched: tuple[int, ...]
) -> BlockStreams | str:
    """Returns the streams, or why they cannot be looked at. watched: the pieces of the block, by number."""
    if watched != tuple(range(watched[0], watched[-1] + 1)):
        return "the block has this part in several places"
    if selects_within_chunks(policy):
        return "a rule computes a part of a chunk's tokens, and of the others the block tells nothing"
    held = {r.group for r in regions if r.keep is not None and r.first <= watched[-1] and watched[0] <= r.last}
    for view in views(policy):
        if block_read(policy_of(policy, view)) is not None and held - {view.group}:
            (other,) = sorted(held - {view.group})[:1]
            return f"it is computed when `{other}` is, and a rule of other layers looks at it"
    found = _streams(captured, watched)
    return "the block continues no stream of video tokens" if found is None else found


def _streams(captured: CapturedModel, watched: tuple[int, ...]) -> BlockStreams | None:
    """The stream of video tokens as it leaves, and what it was when it entered."""
    sites = captured.blocks[watched[0] : watched[-1] + 1]
    made = [name for site in sites for name in site.streams_out]
    ports = {port.name: port for port in captured.streams}
    holding = [name for name in made if ports[name].beside is not None]
    alone = [name for name in holding if ports[name].rows == "video"]
    for left in reversed(alone or holding):
        entered = root_of(sites, left, ())
        if entered not in made:
            return BlockStreams(entered, left)
    return None
