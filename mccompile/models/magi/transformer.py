"""MagiTransformer3DModel: the velocity of the chunks of one call. Module paths are the official ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from mccompile.models.magi.attention import ChunkRanges, RowRanges, Visibility, ZeroCentredLayerNorm, dense_masks
from mccompile.models.magi.config import MagiModelConfig
from mccompile.models.magi.embeddings import CaptionEmbedder, TimestepEmbedder, linear_float32
from mccompile.models.magi.layers import TransformerLayer
from mccompile.models.magi.rotary import LearnableRotary

KeyValues = tuple[tuple[Tensor, Tensor], ...]  # per layer: k and v [B, rows, groups, head_dim]


@dataclass(frozen=True, slots=True)
class MagiTransformerOutput:
    """sample: velocity float32, of the shape of hidden_states; key_values: of the leading chunks, if asked for."""

    sample: Tensor
    key_values: KeyValues


class TransformerBlock(nn.Module):
    """The layers and the last norm, under the official name `videodit_blocks`."""

    def __init__(self, config: MagiModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.final_layernorm = ZeroCentredLayerNorm(config.hidden_size, config.layernorm_epsilon)


class FinalLinear(nn.Module):
    """[.., D] -> [.., patch values], channel fastest."""

    def __init__(self, config: MagiModelConfig) -> None:
        super().__init__()
        values = config.patch_size**2 * config.t_patch_size * config.out_channels
        self.linear = nn.Linear(config.hidden_size, values, bias=False)


class MagiTransformer3DModel(ModelMixin, ConfigMixin, CacheMixin):
    """MAGI-1's diffusion transformer (arXiv 2505.13211), loadable from the official state dict without renaming.

    Arguments are the fields of MagiModelConfig; see there. Raises MagiConfigError (MC0721) when they contradict.
    """

    # Lists: diffusers takes anything else for a single name.
    _repeated_blocks: ClassVar[list[str]] = ["TransformerLayer"]
    # For the compiler: the argument of forward that asks for K/V of leading chunks, which come last in its output.
    key_values_argument: ClassVar[str] = "return_kv_chunks"
    _no_split_modules: ClassVar[list[str]] = ["TransformerLayer"]
    _keep_in_fp32_modules: ClassVar[list[str]] = [
        "x_embedder", "t_embedder", "y_embedder", "rope", "q_layernorm", "k_layernorm",
        "self_attn_post_norm", "mlp_post_norm", "final_layernorm", "final_linear",
    ]  # fmt: skip

    @register_to_config
    def __init__(
        self,
        num_layers: int = 34,
        hidden_size: int = 3072,
        ffn_hidden_size: int = 12288,
        num_attention_heads: int = 24,
        num_query_groups: int = 8,
        kv_channels: int = 128,
        layernorm_epsilon: float = 1e-6,
        x_rescale_factor: float = 1.0,
        half_channel_vae: bool = False,
        patch_size: int = 2,
        t_patch_size: int = 1,
        in_channels: int = 16,
        out_channels: int = 16,
        cond_hidden_ratio: float = 0.25,
        caption_channels: int = 4096,
        caption_max_length: int = 800,
        xattn_cond_hidden_ratio: float = 1.0,
        cond_gating_ratio: float = 1.0,
        gated_linear_unit: bool = False,
    ) -> None:
        super().__init__()
        config = MagiModelConfig(**self.config_arguments())  # type: ignore[arg-type]
        self.shape = config
        patch = (t_patch_size, patch_size, patch_size)
        self.x_embedder = nn.Conv3d(in_channels, hidden_size, patch, patch, bias=False)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = CaptionEmbedder(config)
        self.rope = LearnableRotary(kv_channels)
        self.videodit_blocks = TransformerBlock(config)
        self.final_linear = FinalLinear(config)

    def config_arguments(self) -> dict[str, object]:
        """The registered configuration without diffusers' private entries."""
        return {k: v for k, v in self.config.items() if not k.startswith("_")}

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the layers' matrices; embedders, most norms and the head stay in float32."""
        return self.videodit_blocks.layers[0].self_attention.linear_qkv.q.weight.dtype

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        adaln_row: Tensor,
        kv_ranges: Tensor | RowRanges,
        frame_offset: Tensor,
        distill_span: Tensor | None = None,
        cached_key_values: Sequence[tuple[Tensor, Tensor]] | None = None,
        return_kv_chunks: int = 0,
        return_dict: bool = True,
    ) -> MagiTransformerOutput | tuple[Tensor, KeyValues]:
        """The velocity of n consecutive chunks.

        hidden_states:          [B, latent channels, T, h, w], T = n * frames per chunk
        timestep:               float32 [B, n], 0 noise .. 1 clean
        encoder_hidden_states:  [B, n, L, caption_channels], padded
        encoder_attention_mask: bool [B, n, L]
        adaln_row:              int64 [B], row of the null caption: caption_max_length - 2 with a caption, - 1 without
        kv_ranges:              [n, 2] key rows [first, end) that chunk i attends to; rows count from the start of
                                cached_key_values, this call's tokens follow them. An int64 tensor, or a tuple
        frame_offset:           int64 [], absolute latent frame of the first frame
        distill_span:           float32 [B]; distilled models: the step size, embedded like a time and added
        cached_key_values:      per layer k and v [B, rows, groups, head_dim]
        return_kv_chunks:       how many leading chunks' K/V to return

        A tensor kv_ranges becomes a dense mask where a graph is captured; in eager mode its values are read and
        each chunk is attended to without a mask, which is the same and needs no [S, K] memory.
        """
        frames, height, width = hidden_states.shape[2], *(s // self.shape.patch_size for s in hidden_states.shape[3:])
        tokens, chunks = frames * height * width, timestep.shape[1]
        dtype, device = self.compute_dtype, hidden_states.device
        hidden = self._patchify(hidden_states).to(dtype)
        text, condition = self._embed(timestep, encoder_hidden_states, adaln_row, distill_span)
        token_chunk = torch.arange(tokens, device=device) // (tokens // chunks)
        gate_row = torch.arange(hidden_states.shape[0], device=device)[:, None] * chunks + token_chunk
        rope = self.rope(frames, height, width, frame_offset)
        cached_rows = 0 if cached_key_values is None else cached_key_values[0][0].shape[1]
        visible = _visibility(kv_ranges, token_chunk, cached_rows + tokens, encoder_attention_mask)
        kept_rows = return_kv_chunks * (tokens // chunks)
        new: list[tuple[Tensor, Tensor]] = []
        for i, layer in enumerate(self.videodit_blocks.layers):
            cached = None if cached_key_values is None else cached_key_values[i]
            hidden, kept = layer(hidden, text, condition, gate_row, rope, visible, cached, kept_rows)
            if return_kv_chunks:
                new.append(kept)
        sample = self._unpatchify(self._head(hidden), frames, height, width)
        return MagiTransformerOutput(sample, tuple(new)) if return_dict else (sample, tuple(new))

    def _patchify(self, latents: Tensor) -> Tensor:
        """[B, C, T, h, w] -> float32 [B, T * h' * w', D], frame-major."""
        x = latents.float() * self.shape.x_rescale_factor
        if self.shape.half_channel_vae:
            x = torch.cat((x, x), dim=1)
        patches = F.conv3d(x, self.x_embedder.weight.float(), stride=self.x_embedder.stride)
        return patches.flatten(2).transpose(1, 2)

    def _embed(
        self, timestep: Tensor, caption: Tensor, adaln_row: Tensor, distill_span: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Text [B, n, L, text_size] and condition [B, n, C], in the dtype of the layers."""
        dtype = self.compute_dtype
        text, row = self.y_embedder(caption, adaln_row)
        condition = self.t_embedder(timestep, dtype)
        if distill_span is not None:
            condition = condition + self.t_embedder(distill_span, dtype)[:, None]
        return text.to(dtype), (condition + row[:, None]).to(dtype)

    def _head(self, hidden: Tensor) -> Tensor:
        return linear_float32(self.final_linear.linear, self.videodit_blocks.final_layernorm(hidden.float()))

    def _unpatchify(self, values: Tensor, frames: int, height: int, width: int) -> Tensor:
        """[B, S, p * p * C], channel fastest -> velocity float32 [B, latent channels, T, h, w]."""
        p = self.shape.patch_size
        video = values.unflatten(-1, (p, p, -1)).unflatten(1, (frames, height, width))
        video = video.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return video[:, : self.shape.latent_channels] / self.shape.x_rescale_factor


def _visibility(kv_ranges: Tensor | RowRanges, token_chunk: Tensor, keys: int, text_mask: Tensor) -> Visibility:
    if not isinstance(kv_ranges, Tensor):
        return ChunkRanges(kv_ranges, text_mask)
    if torch.compiler.is_compiling():
        return dense_masks(kv_ranges.to(token_chunk.device), token_chunk, keys, text_mask)
    return ChunkRanges(tuple((first, end) for first, end in kv_ranges.tolist()), text_mask)
