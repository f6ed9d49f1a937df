"""Checks of layers: empty and overlapping ranges, what is kept and whether anything reuses it."""

from __future__ import annotations

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.errors import layers, names

_DEEP = 1_000_000
"""A depth beyond every model's: ranges that meet in so deep a stack meet in every deep enough one."""

KEEP_BLOCKS = ("residual", "output")
KEEP_INTEGRATION = ("increment",)


def bounds(where: ast.BlockRange) -> tuple[int, int]:
    """First and last block in a stack of `_DEEP` blocks."""
    first, last = (block % _DEEP if block < 0 else block for block in (where.first, where.last))
    return first, last


def by_depth(declared: list[ast.LayersDecl]) -> list[ast.LayersDecl]:
    """Block regions in order of depth, the integration last."""
    return sorted(declared, key=lambda item: (1, 0) if item.where is None else (0, bounds(item.where)[0]))


def check_layers(declared: list[ast.LayersDecl], errors: list[Diagnostic]) -> None:
    claimed: list[ast.LayersDecl] = []
    for item in declared:
        choices = KEEP_INTEGRATION if item.where is None else KEEP_BLOCKS
        if item.keep is not None and item.keep.text not in choices:
            errors.append(names.InvalidWord(item.keep.span, "keep", item.keep.text, choices))
        if item.where is not None and bounds(item.where)[0] > bounds(item.where)[1]:
            errors.append(layers.EmptyLayers(item.where.span))
            continue
        for other in claimed:
            claim = _claim(item, other)
            if claim:
                errors.append(layers.OverlappingLayers(_place(item), claim, _place(other)))
                break
        claimed.append(item)


def check_use(
    declared: list[ast.LayersDecl],
    phases: list[ast.PhaseDecl],
    probes: list[ast.Ref],
    errors: list[Diagnostic],
) -> None:
    """What is reused must be kept, what is kept must be reused, and a probe needs blocks to look at."""
    reusing = [phase.rule for phase in phases if not isinstance(phase.rule, ast.Compute)]
    kept = [item for item in by_depth(declared) if item.keep is not None]
    if reusing and not kept:
        errors.append(layers.NothingKept(reusing[0].span))
    if phases and kept and not reusing:
        errors.append(layers.NeverReused(kept[0].span))
    first = by_depth(declared)[:1]
    if probes and not (first and first[0].keep is None and first[0].where is not None):
        errors.append(layers.NoProbe(probes[0].span))


def _place(item: ast.LayersDecl) -> Span:
    return item.span if item.where is None else item.where.span


def _claim(item: ast.LayersDecl, other: ast.LayersDecl) -> str:
    """What `item` claims that is claimed already, in words; empty if nothing."""
    if item.where is None and other.where is None:
        return "claims the integration again"
    if item.where is None:
        return "contains every block"
    if other.where is None:
        return "lies within the integration"
    first = max(bounds(item.where)[0], bounds(other.where)[0])
    last = min(bounds(item.where)[1], bounds(other.where)[1])
    if first > last:
        return ""
    a, b = (block - _DEEP if block > _DEEP // 2 else block for block in (first, last))
    return f"claims block {a} again" if a == b else f"claims blocks {a} to {b} again"
