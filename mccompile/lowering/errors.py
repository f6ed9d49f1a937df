"""Errors of lowering (MC05xx): a policy and a model that do not fit each other."""

from __future__ import annotations

from collections.abc import Sequence

from mccompile import ir
from mccompile.diagnostics.diagnostic import Label
from mccompile.diagnostics.failure import StatedFailure
from mccompile.language.depth import Layers, block_bounds, part_of, range_of
from mccompile.language.spell import where as written


class LoweringError(StatedFailure):
    """Base of the refusals that stop a compile: a code, then place, cause and remedy."""

    code = "MC0500"


class LayersNotFound(LoweringError):
    """A region names blocks that the model does not have."""

    code = "MC0501"

    def __init__(self, policy: str, model: str, where: Layers, count: int) -> None:
        super().__init__(
            f"`layers {spelled(where)}` of policy `{policy}` matches no range of {model}, "
            f"which has {count} blocks",
            f"use indices from 0 to {count - 1}, or count from the end with -1 to -{count}",
            span=range_of(where).at, marked=f"not within blocks 0 to {count - 1}",
        )  # fmt: skip


class LayersOverlap(LoweringError):
    """Two regions of which only the model's depth shows that they name the same blocks."""

    code = "MC0505"

    def __init__(
        self, policy: str, model: str, earlier: Layers, later: Layers, count: int, both: tuple[int, int]
    ) -> None:
        first, last = both
        again = f"block {first}" if first == last else f"blocks {first} to {last}"
        claims = " and ".join(f"`layers {spelled(one)}`" for one in (earlier, later))
        first_at = range_of(earlier).at
        others = () if first_at is None else (Label(first_at, _are(earlier, count)),)
        super().__init__(
            f"{claims} of policy `{policy}` both claim {again} of {model}, which has {count} blocks",
            "let each block lie in one region: count both ranges from the same end",
            span=range_of(later).at, marked=_are(later, count), others=others,
        )  # fmt: skip


def spelled(where: Layers) -> str:
    """The layers as they are written: `blocks[0..7].attn`."""
    blocks = range_of(where)
    return written(blocks.first, blocks.last, part_of(where))


def _are(where: Layers, count: int) -> str:
    first, last = block_bounds(range_of(where), count)
    return f"block {first} of {count}" if first == last else f"blocks {first} to {last} of {count}"


class SublayerNotFound(LoweringError):
    """A region names a sublayer that a block does not have, or a block that cannot be cut into sublayers."""

    code = "MC0507"

    def __init__(self, policy: str, model: str, where: ir.Sublayers, block: str, reason: str) -> None:
        super().__init__(
            f"`layers {spelled(where)}` of policy `{policy}` names no sublayer of {model}: `{block}` {reason}",
            "name sublayers that the blocks have, or whole blocks",
            span=where.at, marked=f"`{block}` has no such part",
        )  # fmt: skip


class SourceNotFound(LoweringError):
    """A rule reads a source that the captured graph does not have."""

    code = "MC0502"

    def __init__(self, policy: str, model: str, source: ir.SourceRef, reason: str) -> None:
        super().__init__(
            f"policy `{policy}` reads `{source.name}`, which was not found in {model}: {reason}",
            "read another source, or use a policy written for this kind of model",
            span=source.at, marked="not found in this model",
        )  # fmt: skip


class NoWindow(LoweringError):
    """A window of chunks on a model whose attention has no chunks that could be left out."""

    code = "MC0508"

    def __init__(self, policy: str, model: str, window: ir.KeyWindow, reason: str) -> None:
        super().__init__(
            f"policy `{policy}` has a window of chunks, and {model} cannot attend within one: {reason}",
            "take the `window` out of `cache { ... }`, or run a model that generates chunks under a causal mask",
            span=window.at, marked="no such chunks in this model",
        )


class DeniedRefusals(LoweringError):
    """Something was refused and the caller asked for refusals to be fatal."""

    code = "MC0503"

    def __init__(self, refusals: tuple[str, ...]) -> None:
        super().__init__(
            "the policy cannot run as written on this model:\n  " + "\n  ".join(refusals),
            "allow refusals to run the policy at a coarser granularity, or choose a policy that fits",
        )


class BudgetUnmet(LoweringError):
    """A byte budget that no measure meets."""

    code = "MC0504"

    def __init__(self, policy: str, cache: ir.Cache, least: int, measure: str) -> None:
        super().__init__(
            f"policy `{policy}` may keep {cache.budget:,} bytes, and would keep at least {least:,} ({measure})",
            "raise `cache { budget: ... }`, set its other options to `auto`, or compile for a smaller size (call=...)",
            span=cache.at, marked="the budget",
        )  # fmt: skip


class UnknownPass(LoweringError):
    """A pass was named that does not exist."""

    code = "MC0506"

    def __init__(self, name: str, meant: str | None, known: Sequence[str]) -> None:
        super().__init__(
            f"there is no pass `{name}`",
            f"did you mean `{meant}`?" if meant else f"the passes are {', '.join(known)}",
        )
