"""The Triton kernel of attention within a window: one launch for all groups, samples and heads.

As `kernel.py`, where each row sees the first keys and later ones. Keys that no row of a tile sees are not read.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def window_rows(
    Q, K, V, SPANS, OUT, rows,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, ob, oh, on,
    scale: tl.constexpr, SHARING: tl.constexpr, WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
    PADDED: tl.constexpr, OUT_PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attends from Q to K and V; row i sees the keys below SPANS[i, 0], and from SPANS[i, 1] to SPANS[i, 2].

    The other arguments are those of `prefix_rows`. Whole blocks of keys that all rows of a tile see are read without a
    mask: they lie in the middle of the later keys. Every row sees a key among those.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, sample = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row, column = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS)
    depth, out_depth = tl.arange(0, PADDED), tl.arange(0, OUT_PADDED)
    inside, deep, out_deep = row < rows, depth < WIDTH, out_depth < OUT_WIDTH
    sink = tl.load(SPANS + 3 * row, mask=inside, other=0)
    begin = tl.load(SPANS + 3 * row + 1, mask=inside, other=0)
    end = tl.load(SPANS + 3 * row + 2, mask=inside, other=0)
    farthest = tl.max(end, 0)
    earliest, latest = tl.min(tl.where(inside, begin, farthest), 0), tl.max(begin, 0)
    whole = tl.maximum(tl.min(tl.where(inside, end, farthest), 0) - latest, 0) // KEYS * KEYS
    queries = Q + sample * qb + head * qh + row[:, None].to(tl.int64) * qn + depth[None, :]
    q = tl.load(queries, mask=inside[:, None] & deep[None, :], other=0.0)
    keys = K + sample * kb + head // SHARING * kh + column[None, :].to(tl.int64) * kn + depth[:, None]
    values = V + sample * vb + head // SHARING * vh + column[:, None].to(tl.int64) * vn + out_depth[None, :]
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, OUT_PADDED], tl.float32)
    front, before = tl.cdiv(tl.max(sink, 0), KEYS), tl.cdiv(latest - earliest, KEYS)
    behind = tl.cdiv(farthest - latest - whole, KEYS)
    for block in range(0, front + before + behind):  # of the first keys; before the middle; behind it
        at, stop = block * KEYS, tl.max(sink, 0)
        if block >= front + before:
            at, stop = latest + whole + (block - front - before) * KEYS, farthest
        elif block >= front:
            at, stop = earliest + (block - front) * KEYS, latest
        first, key = tl.cast(at, tl.int64), (at + column)[None, :]
        there = (at + column) < stop
        k = tl.load(keys + first * kn, mask=there[None, :] & deep[:, None], other=0.0)
        score = tl.dot(q, k, input_precision=PRECISION) * scale
        low, high = tl.where(block < front, 0, begin), tl.where(block < front, sink, end)
        seen = there[None, :] & (key >= low[:, None]) & (key < high[:, None])
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen no key yet
        weight = tl.exp2(score - level[:, None])
        shrunk = tl.exp2(peak - level)
        total = total * shrunk + tl.sum(weight, 1)
        sums = sums * shrunk[:, None]
        v = tl.load(values + first * vn, mask=there[:, None] & out_deep[None, :], other=0.0)
        sums = tl.dot(weight.to(v.dtype), v, sums, input_precision=PRECISION)
        peak = higher
    for at in range(latest, latest + whole, KEYS):
        first = tl.cast(at, tl.int64)
        at_k, at_v = keys + first * kn, values + first * vn
        k = tl.load(at_k) if WIDTH == PADDED else tl.load(at_k, mask=deep[:, None], other=0.0)
        score = tl.dot(q, k, input_precision=PRECISION) * scale
        higher = tl.maximum(peak, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrunk = tl.exp2(peak - higher)
        total = total * shrunk + tl.sum(weight, 1)
        sums = sums * shrunk[:, None]
        v = tl.load(at_v) if OUT_WIDTH == OUT_PADDED else tl.load(at_v, mask=out_deep[None, :], other=0.0)
        sums = tl.dot(weight.to(v.dtype), v, sums, input_precision=PRECISION)
        peak = higher
    sums = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    out = OUT + sample * ob + head * oh + row[:, None].to(tl.int64) * on + out_depth[None, :]
    tl.store(out, sums.to(OUT.dtype.element_ty), mask=inside[:, None] & out_deep[None, :])
