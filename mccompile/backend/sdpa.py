"""Keeps cuDNN's attention away from sizes that a selection decides.

cuDNN makes a plan for every new shape, some 0.4 s each, and torch may ask it first. A selection has another number of
rows at every step, so its attention is left to torch's other kernels. Calls on all tokens have few shapes, and cuDNN
may be the fastest for them. The switch is torch's own, and it is read where a kernel is chosen: while a graph is
compiled, or, in a graph that runs as it is, at the call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def cudnn_attention(allowed: bool) -> Iterator[None]:
    """Inside, torch chooses cuDNN's attention only where `allowed`, and where it might have done so before."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before and allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
