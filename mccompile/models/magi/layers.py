"""One transformer layer: attention and feed-forward, each gated before its post-norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mccompile.models.magi.attention import ParallelAttention, Visibility, ZeroCentredLayerNorm
from mccompile.models.magi.config import MagiModelConfig


class Modulation(nn.Module):
    """Condition [B, n, C] -> soft-capped gates of attention and feed-forward, [B, n, 2 * D]."""

    def __init__(self, config: MagiModelConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(config.condition_size, 2 * config.hidden_size))

    def forward(self, condition: Tensor) -> Tensor:
        gates = self.proj(F.silu(condition))
        return torch.tanh(gates.float()).to(gates.dtype)


class FeedForward(nn.Module):
    """Plain: gelu(fc1). Gated: fc1 gives (a, b), silu(a) * b. The norm is plain, not 1p."""

    def __init__(self, config: MagiModelConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.ffn_hidden_size
        self.gated = config.gated_linear_unit
        self.layer_norm = nn.LayerNorm(size, eps=config.layernorm_epsilon)
        self.linear_fc1 = nn.Linear(size, 2 * inner if self.gated else inner, bias=False)
        self.linear_fc2 = nn.Linear(inner, size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.linear_fc1(self.layer_norm(hidden))
        if self.gated:
            a, b = inner.chunk(2, dim=-1)
            return self.linear_fc2(F.silu(a) * b)
        return self.linear_fc2(F.gelu(inner))


class TransformerLayer(nn.Module):
    """hidden [B, S, D] -> [B, S, D]; everything but self-attention is per token."""

    def __init__(self, config: MagiModelConfig) -> None:
        super().__init__()
        self.ada_modulate_layer = Modulation(config)
        self.self_attention = ParallelAttention(config)
        self.self_attn_post_norm = ZeroCentredLayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = FeedForward(config)
        self.mlp_post_norm = ZeroCentredLayerNorm(config.hidden_size, config.layernorm_epsilon)

    def forward(
        self,
        hidden: Tensor,
        text: Tensor,
        condition: Tensor,
        gate_row: Tensor,
        rope: tuple[Tensor, Tensor],
        visible: Visibility,
        cached: tuple[Tensor, Tensor] | None,
        kept_rows: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the new hidden state, and k and v of the first kept_rows tokens.

        text [B, n, L, text_size]; condition [B, n, C]; gate_row int64 [B, S]: each token's row of the flattened
        condition [B * n, C]; rope: cos and sin [1, S, 1, r].
        """
        gate_attention, gate_mlp = self.ada_modulate_layer(condition).flatten(0, 1).chunk(2, dim=-1)
        joint, kept = self.self_attention(hidden, text, rope, visible, cached, kept_rows)
        hidden = self._add(hidden, joint, F.embedding(gate_row, gate_attention), self.self_attn_post_norm)
        del joint
        return self._add(hidden, self.mlp(hidden), F.embedding(gate_row, gate_mlp), self.mlp_post_norm), kept

    @staticmethod
    def _add(hidden: Tensor, update: Tensor, gate: Tensor, post_norm: nn.Module) -> Tensor:
        """hidden + post_norm(update * gate), in float32, rounded once to hidden's dtype."""
        return (post_norm(update.float() * gate.float()) + hidden.float()).to(hidden.dtype)
