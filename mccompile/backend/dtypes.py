"""Which dtype is the fast one on this CPU, by measurement: float32, or bfloat16 where the CPU multiplies in it.

Both are timed on what a block of a transformer does. The times are kept beside the packages, under the facts that they
depend on, so that every process decides alike.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from mccompile.backend.measured import cpu_facts, measured_once

FastDtype = Literal["float32", "bfloat16"]
TOKENS, WIDTH, HEADS, ROUNDS = 1024, 384, 6, 3
MARGIN = 1.2  # bfloat16 must be so much faster: it costs precision


@dataclass(frozen=True, slots=True)
class DtypeTimes:
    """Seconds of one block's products and attention in each dtype, the least of ROUNDS."""

    float32: float
    bfloat16: float

    @property
    def fast(self) -> FastDtype:
        return "bfloat16" if self.bfloat16 * MARGIN < self.float32 else "float32"

    def in_words(self) -> str:
        """What was chosen, and why."""
        ratio = self.float32 / self.bfloat16
        return f"dtype {self.fast}, by measurement: on this CPU bfloat16 is {ratio:.2f}x as fast as float32"


@functools.cache
def dtype_times() -> DtypeTimes:
    """The times of this machine, measured now where they are not yet known."""
    facts = (*cpu_facts(), torch.get_num_threads(), TOKENS, WIDTH, HEADS)
    return measured_once(DtypeTimes, "dtypes", facts, _measure, lambda found: found.float32 > 0 and found.bfloat16 > 0)


def _measure() -> DtypeTimes:
    return DtypeTimes(*(_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)))


def _seconds(dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    x, project, up, down = (
        (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(dtype)
        for shape in ((TOKENS, WIDTH), (3 * WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))
    )
    times = []
    for _ in range(ROUNDS + 1):  # the first one warms up
        begun = time.perf_counter()
        q, k, v = functional.linear(x, project).view(1, TOKENS, 3 * HEADS, -1).transpose(1, 2).chunk(3, dim=1)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(TOKENS, WIDTH)
        functional.linear(functional.gelu(functional.linear(attended, up)), down)
        times.append(time.perf_counter() - begun)
    return min(times[1:])
