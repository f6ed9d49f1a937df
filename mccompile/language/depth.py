"""Which blocks a region names in a stack of a given depth, and which sublayer of them."""

from __future__ import annotations

from typing import TypeAlias

from mccompile import ir

Layers: TypeAlias = ir.Blocks | ir.Sublayers
Where: TypeAlias = Layers | ir.Integration | ir.WholeModel


def range_of(layers: Layers) -> ir.Blocks:
    """The blocks that layers name, whole or a sublayer of each."""
    return layers.blocks if isinstance(layers, ir.Sublayers) else layers


def blocks_of(where: Where) -> ir.Blocks | None:
    """The range of blocks that a region names; None for the model and the integration, which are all of them."""
    return range_of(where) if isinstance(where, ir.Blocks | ir.Sublayers) else None


def part_of(where: Where) -> ir.SublayerName | None:
    """The sublayer that a region names of each of its blocks; None where it names whole blocks."""
    return where.part if isinstance(where, ir.Sublayers) else None


def block_bounds(where: ir.Blocks, depth: int) -> tuple[int, int]:
    """First and last block, counted from 0. They may lie outside of the stack, and the first behind the last."""
    return _block(where.first, depth), _block(where.last, depth) - isinstance(where.last, float)


def _block(bound: int | float, depth: int) -> int:
    """The block that a range begins with; behind the one that it ends with, for a share."""
    if isinstance(bound, float):
        return int(bound * depth + 1e-9)  # 70% of 10 blocks are 7, and not 6.999999
    return bound + depth if bound < 0 else bound


def shared_blocks(a: Layers, b: Layers, depth: int) -> tuple[int, int] | None:
    """First and last block of which both name something in common; None where there is none."""
    one, two = part_of(a), part_of(b)
    if one is not None and two is not None and one != two:
        return None
    bounds = [block_bounds(range_of(w), depth) for w in (a, b)]
    first, last = max(f for f, _ in bounds), min(x for _, x in bounds)
    return (first, last) if first <= last else None
