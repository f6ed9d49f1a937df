"""The training forward of a block-causal `SkyReelsV2Transformer3DModel`: the same modules, arranged for speed.

diffusers repeats the modulation for every token and masks dense attention; here the modulation stays per frame and each
chunk attends to the prefix that it may see, so nothing is materialised per token and no masked score is computed. The
512 text rows, nearly all of them padding, become a few rows and one that stands for the rest of the padding with its
multiplicity as an additive log weight. `tests/embedded` proves the result equal to diffusers' forward.
"""

from dataclasses import dataclass

import torch
from diffusers import SkyReelsV2Transformer3DModel
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Attention, SkyReelsV2TransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class PromptText:
    """Text rows [B, L, text_dim], zero where padded, and how many more zero rows follow them ([B], at least 1)."""

    rows: Tensor
    padding: Tensor


def training_forward(
    model: SkyReelsV2Transformer3DModel, latents: Tensor, timestep: Tensor, text: PromptText
) -> Tensor:
    """Velocity [B, C, F, H, W] of `latents` [B, C, F, H, W] at `timestep` [B, F] (0..1000).

    F must be a multiple of the model's `num_frame_per_block`, the patch must be one latent pixel.
    """
    batch, _, frames, height, width = latents.shape
    padded = F.pad(text.rows, (0, 0, 0, 1))
    temb, modulation, context, _ = model.condition_embedder(timestep, padded)
    weight = F.pad(text.padding.to(latents.dtype).log()[:, None], (text.rows.shape[1], 0))
    cos, sin = model.rope(latents)
    hidden = model.patch_embedding(latents).flatten(2).transpose(1, 2)
    return trunk(
        model,
        hidden,
        temb,
        modulation.unflatten(-1, (6, -1)),
        context,
        weight[:, None, None],
        cos[..., 0::2],
        sin[..., 1::2],
    ).reshape(batch, frames, height, width, -1).permute(0, 4, 1, 2, 3)


def trunk(
    model: SkyReelsV2Transformer3DModel,
    hidden: Tensor,
    temb: Tensor,
    modulation: Tensor,
    context: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    """Blocks and output projection: [B, F*P, D] to [B, F*P, C]; `temb` [B, F, D], `modulation` [B, F, 6, D]."""
    frames = temb.shape[1]
    chunks = frames // model.config.num_frame_per_block
    for block in model.blocks:
        hidden = _block(block, hidden, modulation, context, weight, cos, sin, chunks)
    table = model.scale_shift_table
    out = _modulate(model.norm_out(hidden), temb + table[:, 0], temb + table[:, 1])
    return model.proj_out(out)


def _block(
    block: SkyReelsV2TransformerBlock,
    hidden: Tensor,
    modulation: Tensor,
    context: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    chunks: int,
) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.scale_shift_table.unsqueeze(1) + modulation).unbind(2)
    attended = _self_attention(block.attn1, _modulate(block.norm1(hidden), shift1, scale1), cos, sin, chunks)
    hidden = hidden + _per_frame(attended, gate1)
    hidden = hidden + _cross_attention(block.attn2, block.norm2(hidden), context, weight)
    forwarded = block.ffn(_modulate(block.norm3(hidden), shift2, scale2))
    return hidden + _per_frame(forwarded, gate2)


def _modulate(rows: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """rows [B, F*P, D] * (1 + scale [B, F, D]) + shift [B, F, D], frame by frame."""
    framed = rows.unflatten(1, (shift.shape[1], -1))
    return (framed * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2)


def _per_frame(rows: Tensor, gate: Tensor) -> Tensor:
    return (rows.unflatten(1, (gate.shape[1], -1)) * gate.unsqueeze(2)).flatten(1, 2)


def _self_attention(attn: SkyReelsV2Attention, rows: Tensor, cos: Tensor, sin: Tensor, chunks: int) -> Tensor:
    query = _rotated(attn.to_q, attn.norm_q, attn.heads, rows, cos, sin)
    key = _rotated(attn.to_k, attn.norm_k, attn.heads, rows, cos, sin)
    value = _heads(attn.to_v(rows), attn.heads)
    query, key = (query * query.shape[-1] ** -0.5).to(value.dtype), key.to(value.dtype)
    size = query.shape[2] // chunks
    parts = [
        _attend(query[:, :, i * size : (i + 1) * size], key[:, :, : (i + 1) * size], value[:, :, : (i + 1) * size])
        for i in range(chunks)
    ]
    return attn.to_out[0](torch.cat(parts, dim=2).transpose(1, 2).flatten(2))


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of scaled queries, spelled out: on CPUs its backward is three times as fast as the fused kernel's."""
    scores = query @ key.transpose(-1, -2)
    scores = scores if bias is None else scores + bias
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype) @ value


def _rotated(
    project: nn.Linear, norm: nn.RMSNorm, heads: int, rows: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """Projected, normalised and rotated heads [B, H, N, d] with each head's even dimensions before its odd ones.

    Scores do not depend on the order of a head's dimensions, so the parameters are read in an order in which the
    rotation works on contiguous halves; interleaved pairs do not vectorise. cos, sin: [1, N, 1, d/2].
    """
    halved = F.linear(rows, _halves(project.weight, heads), _halves(project.bias, heads))
    normed = _normed(halved, norm, _halves(norm.weight, heads))
    even, odd = normed.unflatten(2, (heads, 2, -1)).unbind(3)
    return torch.cat((even * cos - odd * sin, even * sin + odd * cos), dim=-1).transpose(1, 2)


def _normed(rows: Tensor, norm: nn.RMSNorm, weight: Tensor) -> Tensor:
    """RMS norm in the weight's precision, also where autocast has made `rows` narrower."""
    return F.rms_norm(rows.to(weight.dtype), norm.normalized_shape, weight, norm.eps)


def _halves(parameter: Tensor, heads: int) -> Tensor:
    """Rows of an [H * d, ...] parameter, each head's even rows first."""
    return parameter.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _cross_attention(attn: SkyReelsV2Attention, rows: Tensor, context: Tensor, weight: Tensor) -> Tensor:
    value = _heads(attn.to_v(context), attn.heads)
    query = _heads(_normed(attn.to_q(rows), attn.norm_q, attn.norm_q.weight), attn.heads)
    query = (query * query.shape[-1] ** -0.5).to(value.dtype)
    key = _heads(_normed(attn.to_k(context), attn.norm_k, attn.norm_k.weight), attn.heads).to(value.dtype)
    return attn.to_out[0](_attend(query, key, value, weight).transpose(1, 2).flatten(2))


def _heads(rows: Tensor, heads: int) -> Tensor:
    """[B, N, H * d] to [B, H, N, d]."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)
