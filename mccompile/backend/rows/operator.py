"""The operator of the Triton kernel, registered when it is first needed: that imports Triton."""

from __future__ import annotations

import functools
import math

import torch
from torch._ops import OpOverload
from torch.library import triton_op, wrap_triton

from mccompile.lowering.attention import empty_result

NAME = "mccompile::prefix_attention_rows"
SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor seen, float? scale, int rows, int keys, int warps, int stages) -> Tensor"
)


@functools.cache
def rows_operator() -> OpOverload:
    """As `attention.attend`, to float rounding; rows, keys, warps, stages: of a Tile.

    seen: int32 [n], the keys that each row sees. The values of each row of q, k and v must lie side by side. Compilers
    see the kernel: in a package it is launched without Python. Needs Triton.
    """
    triton_op(NAME, _attend_rows, mutates_args=(), schema=SCHEMA)
    return torch.ops.mccompile.prefix_attention_rows.default


def _attend_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float | None,
    rows: int, keys: int, warps: int, stages: int,
) -> torch.Tensor:  # fmt: skip
    from mccompile.backend.rows.kernel import prefix_rows

    width, out_width = q.size(3), v.size(3)
    out = empty_result(q, v)
    grid = ((q.size(2) + rows - 1) // rows, q.size(1), q.size(0))
    strides = [t.stride(i) for t in (q, k, v, out) for i in range(3)]
    wrap_triton(prefix_rows)[grid](
        q, k, v, seen, out, q.size(2), *strides,
        scale=(width**-0.5 if scale is None else scale) * math.log2(math.e), SHARING=q.size(1) // k.size(1),
        WIDTH=width, OUT_WIDTH=out_width, PADDED=padded(width), OUT_PADDED=padded(out_width),
        ROWS=rows, KEYS=keys, PRECISION="ieee", num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def padded(width: int) -> int:
    """The least power of two that holds a head and that products of tiles take."""
    return max(16, 1 << (width - 1).bit_length())


def dense(value: torch.Tensor) -> torch.Tensor:
    """`value` with the values of each row side by side, as the kernel reads them."""
    return value if value.stride(-1) == 1 else value.contiguous()
