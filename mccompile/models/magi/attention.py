"""Self-attention over chunk ranges and cross-attention per chunk, from one normalised input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mccompile.models.magi.config import JOINT_GROUPS, MagiModelConfig
from mccompile.models.magi.embeddings import linear_float32
from mccompile.models.magi.rotary import rotate

RowRanges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ChunkRanges:
    """Key rows per chunk, known on the host: one unmasked attention per chunk (flash where present)."""

    ranges: RowRanges
    text_mask: Tensor  # bool [B, n, L]


@dataclass(frozen=True, slots=True)
class DenseMasks:
    """The same as masks, for graphs that must not depend on the values of the ranges."""

    keys: Tensor  # bool [1, 1, S, K]
    text: Tensor  # bool [B, 1, S, n * L]


Visibility: TypeAlias = ChunkRanges | DenseMasks


def dense_masks(kv_ranges: Tensor, token_chunk: Tensor, keys: int, text_mask: Tensor) -> DenseMasks:
    """Masks for int64 kv_ranges [n, 2] in key rows, token_chunk int64 [S], `keys` rows, text_mask bool [B, n, L]."""
    batch, chunks, length = text_mask.shape
    device = token_chunk.device
    rows = F.embedding(token_chunk, kv_ranges)  # [S, 2]
    key = torch.arange(keys, device=device)[None]
    visible = (key >= rows[:, :1]) & (key < rows[:, 1:])
    owner = torch.arange(chunks, device=device)[:, None].expand(chunks, length).reshape(-1)
    own = token_chunk[:, None] == owner[None]
    text = own[None] & text_mask.reshape(batch, 1, chunks * length)
    return DenseMasks(keys=visible[None, None], text=text[:, None])


class ZeroCentredLayerNorm(nn.LayerNorm):
    """LayerNorm whose stored gain is gain - 1 ("1p"); weight + 1 is formed in the dtype of x, as officially."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype) + 1, self.bias.to(x.dtype), self.eps)


class NormedProjections(nn.Module):
    """LayerNorm (plain, not 1p) and the projections that read it; qx is the query of cross-attention."""

    def __init__(self, config: MagiModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.layer_norm = nn.LayerNorm(size, eps=config.layernorm_epsilon)
        self.q = nn.Linear(size, size, bias=False)
        self.qx = nn.Linear(size, size, bias=False)
        self.k = nn.Linear(size, config.kv_size, bias=False)
        self.v = nn.Linear(size, config.kv_size, bias=False)


class ParallelAttention(nn.Module):
    """Self- and cross-attention side by side, joined by one projection."""

    def __init__(self, config: MagiModelConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.kv_channels
        self.linear_qkv = NormedProjections(config)
        self.linear_kv_xattn = nn.Linear(config.text_size, 2 * config.kv_size, bias=False)
        self.linear_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        eps = config.layernorm_epsilon
        self.q_layernorm = ZeroCentredLayerNorm(self.head_dim, eps)
        self.q_layernorm_xattn = ZeroCentredLayerNorm(self.head_dim, eps)
        self.k_layernorm = ZeroCentredLayerNorm(self.head_dim, eps)
        self.k_layernorm_xattn = ZeroCentredLayerNorm(self.head_dim, eps)

    def _rotated(self, norm: nn.Module, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        return rotate(norm(self._heads(x).float()), *rope).to(x.dtype)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def project(self, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """hidden [B, S, D] -> q [B, S, heads, d], k and v [B, S, groups, d], qx [B, S, heads, d]."""
        normed = self.linear_qkv.layer_norm(hidden)
        q = self._rotated(self.q_layernorm, self.linear_qkv.q(normed), rope)
        k = self._rotated(self.k_layernorm, self.linear_qkv.k(normed), rope)
        v = self._heads(self.linear_qkv.v(normed))
        qx = self.q_layernorm_xattn(self._heads(self.linear_qkv.qx(normed)))
        return q, k, v, qx

    def project_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text [B, n, L, text_size] -> key and value [B, n, L, groups, d]; each group holds its key, then its value."""
        pairs = self.linear_kv_xattn(text).unflatten(-1, (-1, 2 * self.head_dim))
        key, value = pairs.split(self.head_dim, dim=-1)
        return self.k_layernorm_xattn(key), value

    def join(self, self_out: Tensor, cross_out: Tensor) -> Tensor:
        """Interleaves the two results [B, S, heads, d] in JOINT_GROUPS groups and projects: [B, S, D] in float32."""
        parts = (o.flatten(-2).unflatten(-1, (JOINT_GROUPS, -1)) for o in (self_out, cross_out))
        return linear_float32(self.linear_proj, torch.cat(tuple(parts), dim=-1).flatten(-2))

    def forward(
        self,
        hidden: Tensor,
        text: Tensor,
        rope: tuple[Tensor, Tensor],
        visible: Visibility,
        cached: tuple[Tensor, Tensor] | None,
        kept_rows: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """hidden [B, S, D] -> joint output float32 [B, S, D]; k and v [B, kept_rows, groups, d] of the first tokens.

        cached: k and v [B, rows, groups, d] of the clean chunks before; key rows count from their start.
        """
        q, k, v, qx = self.project(hidden, rope)
        keys = k if cached is None else torch.cat((cached[0], k), dim=1)
        values = v if cached is None else torch.cat((cached[1], v), dim=1)
        self_out = self_attention(q, keys, values, visible)
        kept = (k[:, :kept_rows].clone(), v[:, :kept_rows].clone())  # views would keep all rows
        del q, k, v, keys, values  # the joint projection, in float32, is a moment of most memory
        cross_out = cross_attention(qx, *self.project_text(text), visible)
        del qx
        return self.join(self_out, cross_out), kept


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, grouped: bool) -> Tensor:
    """Token-major [B, S, heads, d] in and out."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=grouped
    )
    return out.transpose(1, 2)


def self_attention(q: Tensor, k: Tensor, v: Tensor, visible: Visibility) -> Tensor:
    """q [B, S, heads, d], k and v [B, K, groups, d]; head j uses group j // (heads / groups)."""
    grouped = q.shape[2] != k.shape[2]
    match visible:
        case DenseMasks(keys=mask):
            return _sdpa(q, k, v, mask, grouped)
        case ChunkRanges(ranges=ranges):
            parts = [
                _sdpa(part, k[:, first:end], v[:, first:end], None, grouped)
                for part, (first, end) in zip(q.chunk(len(ranges), dim=1), ranges, strict=True)
            ]
            return torch.cat(parts, dim=1)
    assert_never(visible)


def cross_attention(q: Tensor, k: Tensor, v: Tensor, visible: Visibility) -> Tensor:
    """q [B, S, heads, d] against its own chunk's text: k, v [B, n, L, groups, d]."""
    heads, groups = q.shape[2], k.shape[3]
    # Text is short: repeating its heads costs nothing and leaves every attention kernel eligible.
    k, v = (x.unsqueeze(4).expand(-1, -1, -1, -1, heads // groups, -1).flatten(3, 4) for x in (k, v))
    match visible:
        case DenseMasks(text=mask):
            return _sdpa(q, k.flatten(1, 2), v.flatten(1, 2), mask, False)
        case ChunkRanges(ranges=ranges, text_mask=text_mask):
            per_chunk = q.unflatten(1, (len(ranges), -1)).flatten(0, 1)
            mask = text_mask.flatten(0, 1)[:, None, None]
            out = _sdpa(per_chunk, k.flatten(0, 1), v.flatten(0, 1), mask, False)
            return out.unflatten(0, (q.shape[0], -1)).flatten(1, 2)
    assert_never(visible)
