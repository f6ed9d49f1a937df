"""Copies of host values on a device, for work that is queued from now on: the host never waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from mccompile.policy.bind import BoundPolicy


def upload(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """`values` on the device. CUDA copies in the background only out of pinned memory."""
    return to_device(torch.from_numpy(values), device)


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device, the copy made as by `upload`. Prices are counted with fake tensors too."""
    if device.type == "cuda":
        host = torch.empty(host.shape, dtype=host.dtype, pin_memory=True).copy_(host)
    return host.to(device, non_blocking=True)


def parameters(names: Sequence[str], bound: BoundPolicy, device: torch.device) -> torch.Tensor:
    """The vector of parameter values in the order of `names`, float32; made once for each set of values and device."""
    return _vector(tuple(float(bound.values[n]) for n in names), device)


@lru_cache(maxsize=64)
def _vector(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return upload(np.array(values, np.float32), device)
