"""`python -m tests.backend.interpreted`: the Triton kernels in Triton's interpreter, one line of JSON for each case.

A process of its own: Triton reads TRITON_INTERPRET when it is imported. The interpreter computes with numpy on the CPU;
bfloat16 is not right there.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass

import numpy as np
import torch

from mccompile.backend.rows.operator import padded
from mccompile.lowering.attention import attend, attend_windows, bounds_of, empty_result, seen_of
from mccompile.lowering.windows import ranges_of, spans_at, spans_of
from mccompile.policy.bind import Reach


@dataclass(frozen=True)
class Case:
    """samples, heads of queries and of keys, keys, widths of q and k and of v, chunks, share of the rows, tile."""

    samples: int = 1
    heads: int = 2
    of_keys: int = 2
    keys: int = 96
    width: int = 32
    out_width: int = 32
    chunks: int = 3
    share: float = 0.4
    tile: tuple[int, int] = (16, 32)
    scale: float | None = None
    padded_rows: bool = False
    reach: tuple[int, int] | None = None  # chunks of a window, and of its sink


CASES = (
    Case(), Case(samples=2, of_keys=1, chunks=4, share=1.0), Case(width=24, out_width=20, keys=90),
    Case(keys=130, chunks=1, tile=(32, 16)), Case(chunks=6, share=0.02, scale=0.3), Case(padded_rows=True, width=64),
    Case(chunks=6, reach=(1, 0), tile=(16, 16)), Case(samples=2, of_keys=1, chunks=8, share=1.0, reach=(2, 1)),
    Case(keys=480, chunks=5, reach=(3, 1), share=0.9), Case(width=24, out_width=20, keys=90, reach=(1, 1), scale=0.3),
    Case(keys=480, chunks=4, reach=(2, 0), share=0.1, padded_rows=True), Case(chunks=2, reach=(4, 1)),
)  # fmt: skip


def error_of(case: Case, dtype: torch.dtype) -> float:
    """Relative to attention in double precision, group by group."""
    from mccompile.backend.rows.kernel import prefix_rows
    from mccompile.backend.rows.window_kernel import window_rows

    torch.manual_seed(0)
    each = case.keys // case.chunks
    lengths = np.minimum((np.arange(case.keys) // each + 1) * each, case.keys)
    count = max(2, int(case.share * case.keys))
    positions = np.sort(np.random.RandomState(1).permutation(case.keys)[:count])

    def laid(rows: int, heads: int, width: int) -> torch.Tensor:
        wide = width + 8 if case.padded_rows else width
        return torch.randn(case.samples, rows, heads, wide)[..., :width].to(dtype).transpose(1, 2)

    q, k = laid(count, case.heads, case.width), laid(case.keys, case.of_keys, case.width)
    v = laid(case.keys, case.of_keys, case.out_width)
    out = empty_result(q, v).fill_(math.nan)
    rows, keys = case.tile
    strides = [t.stride(i) for t in (q, k, v, out) for i in range(3)]
    double = q.double(), k.double(), v.double()
    if case.reach is None:
        kernel, told = prefix_rows, seen_of(positions, lengths)
        wanted = attend(*double, bounds_of(positions, lengths), case.scale)
    else:
        spans = spans_of(lengths, Reach(*case.reach))
        assert spans is not None
        kernel, told = window_rows, spans_at(positions, spans)
        wanted = attend_windows(*double, ranges_of(positions, spans), case.scale)
    kernel[((count + rows - 1) // rows, case.heads, case.samples)](
        q, k, v, told, out, count, *strides,
        scale=(case.width**-0.5 if case.scale is None else case.scale) * math.log2(math.e),
        SHARING=case.heads // case.of_keys, WIDTH=case.width, OUT_WIDTH=case.out_width, PADDED=padded(case.width),
        OUT_PADDED=padded(case.out_width), ROWS=rows, KEYS=keys, PRECISION="ieee",
    )  # fmt: skip
    return float((out.double() - wanted).norm() / wanted.norm())


def main() -> None:
    """One line for each case and dtype."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    for dtype in (torch.float32, torch.float16):
        for case in CASES:
            found = {"dtype": str(dtype), "error": error_of(case, dtype), **asdict(case)}
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
