"""The Triton kernel of attention over prefixes: one launch for all groups, samples and heads.

This module needs Triton, so only `rows.launch` imports it. Scores are kept to the base 2, and the softmax is the
online one (Milakov and Gimelshein, arXiv 1805.02867), as in FlashAttention-2 (arXiv 2307.08691).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def prefix_rows(
    Q, K, V, SEEN, OUT, rows,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, ob, oh, on,
    scale: tl.constexpr, SHARING: tl.constexpr, WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
    PADDED: tl.constexpr, OUT_PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attends from Q [B, H, n, WIDTH] to K and V [B, H / SHARING, L, ...]; row i sees the first SEEN[i] keys.

    rows: n. qb to on: strides of batch, head and row; values of one row lie side by side. scale: times log2(e).
    PADDED, OUT_PADDED: powers of two. ROWS, KEYS: of a tile. A tile reads whole blocks of keys as far as all of its
    rows see, and the rest up to its longest prefix under a mask. Tiles with long prefixes come first: rows ascend.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, sample = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row, column = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS)
    depth, out_depth = tl.arange(0, PADDED), tl.arange(0, OUT_PADDED)
    inside, deep, out_deep = row < rows, depth < WIDTH, out_depth < OUT_WIDTH
    seen = tl.load(SEEN + row, mask=inside, other=0)
    most = tl.max(seen, 0)
    least = tl.min(tl.where(inside, seen, most), 0)
    whole = least // KEYS * KEYS
    queries = Q + sample * qb + head * qh + row[:, None].to(tl.int64) * qn + depth[None, :]
    q = tl.load(queries, mask=inside[:, None] & deep[None, :], other=0.0)
    keys = K + sample * kb + head // SHARING * kh + column[None, :].to(tl.int64) * kn + depth[:, None]
    values = V + sample * vb + head // SHARING * vh + column[:, None].to(tl.int64) * vn + out_depth[None, :]
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, OUT_PADDED], tl.float32)
    for start in range(0, whole, KEYS):
        first = tl.cast(start, tl.int64)
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
    for start in range(whole, most, KEYS):
        first, there = tl.cast(start, tl.int64), start + column < most
        k = tl.load(keys + first * kn, mask=there[None, :] & deep[:, None], other=0.0)
        score = tl.dot(q, k, input_precision=PRECISION) * scale
        score = tl.where((start + column)[None, :] < seen[:, None], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen no key yet
        weight = tl.exp2(score - level[:, None])
        shrunk = tl.exp2(peak - level)
        total = total * shrunk + tl.sum(weight, 1)
        sums = sums * shrunk[:, None]
        v = tl.load(values + first * vn, mask=there[:, None] & out_deep[None, :], other=0.0)
        sums = tl.dot(weight.to(v.dtype), v, sums, input_precision=PRECISION)
        peak = higher
    sums = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    out = OUT + sample * ob + head * oh + row[:, None].to(tl.int64) * on + out_depth[None, :]
    tl.store(out, sums.to(OUT.dtype.element_ty), mask=inside[:, None] & out_deep[None, :])
