"""Which blocks a region names in a stack of a given depth."""

from __future__ import annotations

from mccompile import ir


def block_bounds(where: ir.Blocks, depth: int) -> tuple[int, int]:
    """First and last block, counted from 0. They may lie outside of the stack, and the first behind the last."""
    return _block(where.first, depth), _block(where.last, depth) - isinstance(where.last, float)


def _block(bound: int | float, depth: int) -> int:
    """The block that a range begins with; behind the one that it ends with, for a share."""
    if isinstance(bound, float):
        return int(bound * depth + 1e-9)  # 70% of 10 blocks are 7, and not 6.999999
    return bound + depth if bound < 0 else bound


def shared_blocks(a: ir.Blocks, b: ir.Blocks, depth: int) -> tuple[int, int] | None:
    """First and last block that both name; None where they name none in common."""
    (first_a, last_a), (first_b, last_b) = block_bounds(a, depth), block_bounds(b, depth)
    first, last = max(first_a, first_b), min(last_a, last_b)
    return (first, last) if first <= last else None
