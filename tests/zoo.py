"""Tiny random transformers of many families, and calls of them at given sizes.

`zoo("wan")` is a Family: `model()` makes the same random model each time, `call(size)` the keyword arguments of
its forward at a size (frames, height, width) of the latent. `sizes` are two for capture and one never shown to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
import torch.nn.functional as F
from torch import nn

Size = tuple[int, int, int]
Call = dict[str, object]

_SIZES: tuple[Size, Size, Size] = ((5, 6, 14), (10, 10, 22), (6, 8, 10))
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 36}
_TEXT, _TEXT_DIM, _CHANNELS = 11, 16, 4


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture; `kinds` is the number of kinds of block that capture should find."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[Size, int], Call]
    sizes: tuple[Size, Size, Size] = _SIZES
    kinds: int = 1

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The model, its zero-initialised parameters made random so that nothing is trivially zero."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make().eval().requires_grad_(False)
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        return model.to(dtype)

    def call(self, size: Size, batch: int = 1, dtype: torch.dtype = torch.float64, seed: int = 0) -> Call:
        """Random keyword arguments of forward."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return {k: _cast(v, dtype) for k, v in self.inputs(size, batch).items()}


def _cast(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, tuple):
        return tuple(_cast(v, dtype) for v in value)
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _text(batch: int) -> torch.Tensor:
    return torch.randn(batch, _TEXT, _TEXT_DIM)


def _steps(*shape: int) -> torch.Tensor:
    return torch.randint(1, 999, shape)


def _video(size: Size, batch: int, **more: object) -> Call:
    """The call that most video models share."""
    frames, height, width = size
    call: Call = {
        "hidden_states": torch.randn(batch, _CHANNELS, frames, height, width),
        "timestep": _steps(batch),
        "encoder_hidden_states": _text(batch),
        "return_dict": False,
    }
    return call | more


def tokens_of(size: Size) -> int:
    """Video tokens of a latent; every family of the zoo has patches of (1, 2, 2)."""
    frames, height, width = size
    return frames * (height // 2) * (width // 2)


def _text_mask(batch: int) -> torch.Tensor:
    mask = torch.ones(batch, _TEXT, dtype=torch.long)
    mask[:, 8:] = 0
    return mask


_WAN = {
    "patch_size": (1, 2, 2),
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "text_dim": _TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 144,
    "num_layers": 2,
    "rope_max_seq_len": 64,
    **_HEADS,
}


def _wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(**_WAN)


def _skyreels() -> nn.Module:
    return diffusers.SkyReelsV2Transformer3DModel(**_WAN, num_frame_per_block=5, inject_sample_info=True)


def _skyreels_inputs(size: Size, batch: int) -> Call:
    return _video(size, batch, timestep=_steps(batch, size[0]), enable_diffusion_forcing=True, fps=[0] * batch)


def _hunyuan(image_condition_type: str | None = None) -> nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(
        image_condition_type=image_condition_type,
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=_TEXT_DIM,
        pooled_projection_dim=8,
        rope_axes_dim=(12, 12, 12),
        **_HEADS,
    )


def _hunyuan_inputs(size: Size, batch: int) -> Call:
    return _video(
        size,
        batch,
        encoder_attention_mask=_text_mask(batch),
        pooled_projections=torch.randn(batch, 8),
        guidance=torch.full((batch,), 6000.0),
    )


def _helios() -> nn.Module:
    sizes = {k: v for k, v in _WAN.items() if k != "rope_max_seq_len"}
    return diffusers.HeliosTransformer3DModel(
        **sizes,
        rope_dim=(12, 12, 12),
        guidance_cross_attn=True,
        zero_history_timestep=True,
        is_amplify_history=True,
    )


def _helios_inputs(size: Size, batch: int) -> Call:
    """With history: its tokens lie in front of the video's, and blocks cut them off."""
    frames, height, width = size
    call = _video(size, batch, indices_hidden_states=torch.arange(7, 7 + frames)[None])
    for name, first, count in (("short", 6, 1), ("mid", 4, 2), ("long", 0, 4)):
        call[f"latents_history_{name}"] = torch.randn(batch, _CHANNELS, count, height, width)
        call[f"indices_latents_history_{name}"] = torch.arange(first, first + count)[None]
    return call


def _cogvideox() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        time_embed_dim=10,
        text_embed_dim=_TEXT_DIM,
        num_layers=2,
        sample_width=22,
        sample_height=10,
        sample_frames=37,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=_TEXT,
        use_rotary_positional_embeddings=True,
        **_HEADS,
    )


def _cogvideox_inputs(size: Size, batch: int) -> Call:
    frames, height, width = size
    tokens = tokens_of(size)
    return {
        "hidden_states": torch.randn(batch, frames, _CHANNELS, height, width),
        "encoder_hidden_states": _text(batch),
        "timestep": _steps(batch),
        "image_rotary_emb": (torch.randn(tokens, 36), torch.randn(tokens, 36)),
        "return_dict": False,
    }


def _ltx() -> nn.Module:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, cross_attention_dim=72, num_layers=2, caption_channels=_TEXT_DIM, **_HEADS
    )


def _ltx_inputs(size: Size, batch: int) -> Call:
    frames, height, width = size
    return {
        "hidden_states": torch.randn(batch, tokens_of(size), 8),
        "encoder_hidden_states": _text(batch),
        "timestep": torch.rand(batch) * 999,
        "encoder_attention_mask": _text_mask(batch).bool(),
        "num_frames": frames,
        "height": height // 2,
        "width": width // 2,
        "return_dict": False,
    }


def _flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=_TEXT_DIM,
        pooled_projection_dim=8,
        axes_dims_rope=(12, 12, 12),
        guidance_embeds=True,
        **_HEADS,
    )


def _flux_inputs(size: Size, batch: int) -> Call:
    height, width = size[1] // 2 * size[0], size[2] // 2
    places = torch.zeros(height, width, 3)
    places[..., 1] += torch.arange(height)[:, None]
    places[..., 2] += torch.arange(width)
    return {
        "hidden_states": torch.randn(batch, height * width, 8),
        "encoder_hidden_states": _text(batch),
        "pooled_projections": torch.randn(batch, 8),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": places.view(-1, 3),
        "txt_ids": torch.zeros(_TEXT, 3),
        "guidance": torch.full((batch,), 3.5),
        "return_dict": False,
    }


class ToyBlock(nn.Module):
    """A block as a user may write it: fused qkv, adaptive norm, an optional convolution over tokens."""

    def __init__(self, dim: int, convolves: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 3 * dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.local = nn.Conv1d(dim, dim, 3, padding=1, groups=dim) if convolves else None

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(time)[:, None].chunk(3, dim=-1)
        y = self.norm(x) * (1 + scale) + shift
        q, k, v = self.qkv(y).view(y.shape[0], y.shape[1], 3, 4, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(y.shape)
        x = x + gate * self.out(attended)
        if self.local is not None:
            x = x + self.local(x.transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm(x))


class ToyTransformer(nn.Module):
    """A small video transformer that diffusers does not have."""

    def __init__(self, dim: int = 24, layers: int = 3, convolves: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv3d(_CHANNELS, dim, (1, 2, 2), (1, 2, 2))
        self.time = nn.Sequential(nn.Linear(1, dim), nn.SiLU())
        self.layers = nn.ModuleList(ToyBlock(dim, convolves) for _ in range(layers))
        self.head = nn.Linear(dim, _CHANNELS * 4)

    def forward(self, latent: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x = self.patch(latent)
        batch, _, frames, height, width = x.shape
        x, t = x.flatten(2).transpose(1, 2), self.time(time[:, None])
        for layer in self.layers:
            x = layer(x, t)
        x = self.head(x).view(batch, frames, height, width, _CHANNELS, 2, 2)
        return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(batch, _CHANNELS, frames, 2 * height, 2 * width)


def _toy_inputs(size: Size, batch: int) -> Call:
    return {"latent": torch.randn(batch, _CHANNELS, *size), "time": torch.rand(batch)}


def _per_token_time(size: Size, batch: int) -> Call:
    return _video(size, batch, timestep=_steps(batch, tokens_of(size)))


_CHUNKED: tuple[Size, Size, Size] = ((10, 6, 14), (15, 10, 22), (5, 8, 10))
_FAMILIES = (
    Family("wan", _wan, _video),
    Family("wan_per_token_time", _wan, _per_token_time),
    Family("skyreels", _skyreels, _skyreels_inputs, _CHUNKED),
    Family("hunyuan", _hunyuan, _hunyuan_inputs, kinds=2),
    Family("hunyuan_first_frame", lambda: _hunyuan("token_replace"), _hunyuan_inputs, kinds=2),
    Family("helios", _helios, _helios_inputs),
    Family("cogvideox", _cogvideox, _cogvideox_inputs),
    Family("ltx", _ltx, _ltx_inputs),
    Family("flux", _flux, _flux_inputs, kinds=2),
    Family("toy", ToyTransformer, _toy_inputs),
    Family("toy_convolution", lambda: ToyTransformer(convolves=True), _toy_inputs),
)
FAMILIES = {family.name: family for family in _FAMILIES}


def zoo(name: str) -> Family:
    """The family of this name."""
    return FAMILIES[name]
