"""The operator of the Triton kernel, registered when it is first needed: that imports Triton."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch._ops import OpOverload
from torch.library import triton_op, wrap_triton

from mccompile.lowering.attention import empty_result

_PREFIXES, _WINDOWS = "mccompile::prefix_attention_rows", "mccompile::window_attention_rows"
_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor {}, float? scale, int rows, int keys, int warps, int stages) -> Tensor"
)


@functools.cache
def rows_operator() -> OpOverload:
    """As `attention.attend`, to float rounding; rows, keys, warps, stages: of a Tile.

    seen: int32 [n], the keys that each row sees. The values of each row of q, k and v must lie side by side. Compilers
    see the kernel: in a package it is launched without Python. Needs Triton.
    """
    triton_op(_PREFIXES, _attend_rows, mutates_args=(), schema=_SCHEMA.format("seen"))
    return torch.ops.mccompile.prefix_attention_rows.default


@functools.cache
def windows_operator() -> OpOverload:
    """As `attention.attend_windows`, to float rounding. spans: int32 [n, 3], what each row sees, side by side."""
    triton_op(_WINDOWS, _attend_windows, mutates_args=(), schema=_SCHEMA.format("spans"))
    return torch.ops.mccompile.window_attention_rows.default


def _attend_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float | None,
    rows: int, keys: int, warps: int, stages: int,
) -> torch.Tensor:  # fmt: skip
    from mccompile.backend.rows.kernel import prefix_rows

    return _launched(prefix_rows, q, k, v, seen, scale, (rows, keys, warps, stages))


def _attend_windows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: torch.Tensor, scale: float | None,
    rows: int, keys: int, warps: int, stages: int,
) -> torch.Tensor:  # fmt: skip
    from mccompile.backend.rows.window_kernel import window_rows

    return _launched(window_rows, q, k, v, spans, scale, (rows, keys, warps, stages))


def _launched(
    kernel: Callable[..., None], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, of_rows: torch.Tensor,
    scale: float | None, tile: tuple[int, int, int, int],
) -> torch.Tensor:  # fmt: skip
    """What one of the kernels gives. of_rows: what each row sees, as it reads that. tile: `Tile.sizes`."""
    rows, keys, warps, stages = tile
    width, out_width = q.size(3), v.size(3)
    out = empty_result(q, v)
    grid = ((q.size(2) + rows - 1) // rows, q.size(1), q.size(0))
    strides = [t.stride(i) for t in (q, k, v, out) for i in range(3)]
    wrap_triton(kernel)[grid](
        q, k, v, of_rows, out, q.size(2), *strides,
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
