"""What a run needs on the accelerator, by calculation. torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mccompile.models.magi.config import MagiModelConfig, MagiSettings
from mccompile.models.magi.schedule import magi_schedule, oldest_needed

_FLOAT32 = 4
# The caching allocator rounds, splits and keeps blocks.
_FRAGMENTATION = 1.15
# Released components: parameters of T5 v1.1 XXL's encoder (float32) and of the VAE (bfloat16).
_T5_BYTES = 4_762_310_656 * _FLOAT32
_VAE_BYTES = 613_755_239 * 2


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters that stay in float32, and those in the dtype of the layers."""

    float32: int
    layers: int

    @property
    def total(self) -> int:
        return self.float32 + self.layers


def count_parameters(config: MagiModelConfig) -> ParameterCount:
    """As the modules have them; 4,459,898,128 for the 4.5B model and 23,899,281,936 for the 24B one."""
    d, f, c, kv = config.hidden_size, config.ffn_hidden_size, config.condition_size, config.kv_size
    text, captions, head = config.text_size, config.caption_channels, config.kv_channels
    patch = config.patch_size**2 * config.t_patch_size
    outside = (
        d * config.in_channels * patch
        + (256 * c + c + c * c + c)
        + config.caption_max_length * captions
        + (captions * text + text)
        + (captions * c + c)
        + head // 8
        + 2 * d
        + d * config.out_channels * patch
    )
    inner = 2 * f if config.gated_linear_unit else f
    modulation, norms, projections = 2 * d * c + 2 * d, 4 * d + 4 * head, 4 * d * d + 2 * d * kv + 2 * text * kv
    layer = modulation + norms + projections + d * inner + f * d
    kept = 4 * head + 4 * d
    return ParameterCount(outside + config.num_layers * kept, config.num_layers * layer)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on the accelerator at the worst moment of a run."""

    weights: int
    clean_chunks: int  # K/V of clean chunks, while they are being extended
    activations: int  # of one layer of the largest call, with the allocator's overhead
    latents: int
    offloaded: int  # text encoder and VAE, when they are not offloaded to the host

    @property
    def total(self) -> int:
        return self.weights + self.clean_chunks + self.activations + self.latents + self.offloaded


def _layer_bytes(config: MagiModelConfig, tokens: int, keys: int, size: int) -> int:
    """The largest of a layer's moments: query projection, joint projection, feed-forward, gated sum."""
    d, inner = config.hidden_size, config.ffn_hidden_size
    hidden, wide = tokens * d * size, tokens * d * _FLOAT32
    rotary = 2 * tokens * 3 * (config.kv_channels // 8) * _FLOAT32
    project = 2 * hidden + 3 * wide + wide // 2  # normed, q; normed q and rotated q in float32 with its halves
    attend = 5 * hidden + 2 * (tokens + keys) * config.kv_size * size  # normed, q, qx, output and its parts; k and v
    join = 4 * hidden + 3 * wide + 2 * d * d * _FLOAT32  # both outputs, joined, in float32, projected; the weight
    feed_forward = 2 * hidden + (4 if config.gated_linear_unit else 2) * tokens * inner * size
    gated_sum = 3 * hidden + 3 * wide
    return hidden + rotary + max(project, attend, join, feed_forward, gated_sum)


def estimate_memory(
    config: MagiModelConfig,
    settings: MagiSettings,
    height: int,
    width: int,
    num_frames: int,
    prefix_frames: int = 0,
    element_size: int = 2,
    offload: bool = True,
) -> MemoryEstimate:
    """For the eager pipeline: no dense masks, one layer's activations at a time.

    height, width: pixels; num_frames: video frames to generate; prefix_frames: latent frames given;
    element_size: bytes per element of the layers' dtype; offload: text encoder and VAE wait on the host.
    """
    chunks = math.ceil((num_frames // settings.temporal_factor + prefix_frames) / settings.chunk_width)
    calls = magi_schedule(settings, chunks, prefix_frames // settings.chunk_width)
    grid = (height // 8 // config.patch_size) * (width // 8 // config.patch_size)
    chunk_tokens = settings.chunk_width * grid
    per_chunk = 2 * chunk_tokens * config.kv_size * element_size * config.num_layers
    cached = [c.slice_point - oldest for c, oldest in zip(calls, oldest_needed(calls), strict=True)]
    # While clean chunks are appended: the old copy, the call's new rows, and the joined copy.
    kept = max(2 * held + 2 * len(c.clean_chunks) for held, c in zip(cached, calls, strict=True))
    copies = [1 if settings.distilled and c.nearly_clean else 0 for c in calls]
    run = [(len(c.chunks) + copy) * chunk_tokens for c, copy in zip(calls, copies, strict=True)]
    largest = max(
        _layer_bytes(config, tokens, tokens + held * chunk_tokens, element_size)
        for tokens, held in zip(run, cached, strict=True)
    )
    count = count_parameters(config)
    video = chunks * settings.chunk_width * (height // 8) * (width // 8) * config.latent_channels * _FLOAT32
    return MemoryEstimate(
        weights=count.float32 * _FLOAT32 + count.layers * element_size,
        clean_chunks=kept * per_chunk,
        activations=int(largest * _FRAGMENTATION),
        latents=6 * video,
        offloaded=0 if offload else _T5_BYTES + _VAE_BYTES,
    )
