"""Filters of tensors over the frequencies of their frames, rows and columns, as the decision graph computes them.

Along one axis of n places, a gain g(f) that is the same for f and -f is a circulant matrix of real numbers: multiplying
by it does what a Fourier transform, the gain and the transform back do. The axes are filtered one after the other. That
is the filter whose gain is the product of those along the axes (SeaCache, arXiv 2602.18993, and its code). Matrices are
used and no complex numbers, because Inductor does not compile those, and an axis of tokens is short: at most some
hundreds of places, where a matrix is as fast. All sizes may vary.
"""

from __future__ import annotations

from dataclasses import replace
from math import tau

import torch

from mccompile import ir
from mccompile.lowering.expressions import Leaves, evaluate

_ALONG = ("bgij,bgjrwc->bgirwc", "bgij,bgfjwc->bgfiwc", "bgij,bgfrjc->bgfric")


def filtered(cells: torch.Tensor, gain: ir.Expr, leaves: Leaves, places: torch.Tensor) -> torch.Tensor:
    """Returns a source [B, G, F, P, C] with its frequencies weighted, float32. Each chunk is filtered by itself.

    gain: at `frequency`, 0 to 0.5 cycles per token; it is divided by its mean over the frequencies of the axis.
    places: [rows, columns] of a frame, of which only the sizes are read.
    """
    value = cells.float().unflatten(3, (places.size(0), places.size(1)))
    lines = (value[:1, :1, :, 0, 0, 0], value[:1, :1, 0, :, 0, 0], value[:1, :1, 0, 0, :, 0])
    for line, along in zip(lines, _ALONG, strict=True):
        value = torch.einsum(along, _circulant(line.float(), gain, leaves), value)
    return value.flatten(3, 4)


def _circulant(line: torch.Tensor, gain: ir.Expr, leaves: Leaves) -> torch.Tensor:
    """Returns the matrix [B, G, n, n] of a gain along an axis of n places. line: [1, 1, n], read for its size alone."""
    ones = torch.ones_like(line)
    index = ones.cumsum(-1) - 1.0
    count = ones.sum(-1, keepdim=True)
    frequency = (torch.minimum(index, count - index) / count).unsqueeze(2)  # [1, 1, 1, n]
    weights = evaluate(gain, replace(leaves, frequency=frequency)) + frequency * 0.0
    weights = weights / weights.mean(-1, keepdim=True)
    turns = torch.remainder(index.unsqueeze(3) * index.unsqueeze(2), count.unsqueeze(3)) / count.unsqueeze(3)
    cosine, sine = (turns * tau).cos(), (turns * tau).sin()
    return ((cosine * weights) @ cosine + (sine * weights) @ sine) / count.unsqueeze(3)  # both are symmetric
