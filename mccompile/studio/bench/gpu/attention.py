"""Second stage: every way to attend from selected rows, at a number of rows never seen, and then in steady state."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch.nn import functional as nnf
from torch.nn.attention import SDPBackend, sdpa_kernel

from mccompile.lowering.attention import attend, bounds_of, seen_of
from mccompile.studio.bench.gpu.machine import Machine
from mccompile.studio.bench.gpu.telling import TellRow
from mccompile.studio.bench.report import Row
from mccompile.studio.bench.timing import CallTimer

CHUNKS = 5
PREFIXES = ("prefixes", "prefixes, by groups")
AttentionWay: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}  # fmt: skip


def attention(machine: Machine, tell: TellRow) -> None:
    """One row per number of rows and way. share: of the products that all keys would take."""
    scale, clock = machine.scale, CallTimer(machine.device)
    for count in scale.rows:
        for name, way in ways().items():
            positions = np.linspace(0, scale.keys - 1, count).astype(np.int64)
            lengths = (np.arange(scale.keys) * CHUNKS // scale.keys + 1) * scale.keys // CHUNKS
            bounds, seen = bounds_of(positions, lengths), seen_of(positions, lengths).to(machine.device)
            q, k, v = (
                torch.rand(1, n, scale.heads, scale.width, device=machine.device, dtype=machine.dtype).transpose(1, 2)
                for n in (count, scale.keys, scale.keys)
            )
            row: Row = {"name": name, "rows": count, "keys": scale.keys}
            once = partial(way, q, k, v, bounds, seen)
            try:
                first = clock.seconds(once)
            except RuntimeError as error:  # torch: no such kernel for this device, dtype or width
                tell({**row, "refused": str(error).splitlines()[0]})
                continue
            steady = statistics.median(clock.seconds(once) for _ in range(scale.rounds))
            share = float(lengths[positions].mean() / scale.keys) if name in PREFIXES else 1.0
            flops = 4 * count * scale.keys * scale.heads * scale.width * share
            tell({**row, "first_ms": first * 1e3, "ms": steady * 1e3, "share": share, "tflops": flops / steady / 1e12})


def ways() -> Mapping[str, AttentionWay]:
    """Torch's kernels over all keys, torch's own choice among them, and what compiled roles call."""
    found: dict[str, AttentionWay] = {name: _under(backend) for name, backend in BACKENDS.items()}
    found["torch's choice"] = lambda q, k, v, bounds, seen: nnf.scaled_dot_product_attention(q, k, v)
    found["prefixes"] = torch.ops.mccompile.prefix_attention.default
    found["prefixes, by groups"] = lambda q, k, v, bounds, seen: attend(q, k, v, bounds)
    return found


def _under(backend: SDPBackend) -> AttentionWay:
    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        with sdpa_kernel([backend]):
            return nnf.scaled_dot_product_attention(q, k, v)

    return run
