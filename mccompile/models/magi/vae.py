"""MAGI-1's video autoencoder: two plain vision transformers, used in tiles. State-dict names are the official ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from mccompile.models.magi.tiling import Tiling, decode_tiles, encode_tiles

_QKV_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class VitShape:
    """What encoder and decoder share."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    patch: tuple[int, int, int]
    grid: tuple[int, int, int]  # of the stored position embedding
    channels: int
    latent_channels: int


class Attention(nn.Module):
    """Self-attention whose q, k *and v* are standardised per head, without gain or bias."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.heads = shape.num_heads
        self.qkv = nn.Linear(shape.embed_dim, 3 * shape.embed_dim)
        self.proj = nn.Linear(shape.embed_dim, shape.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        # The official norm adds eps to the deviation, not to the variance.
        qkv = (qkv - qkv.mean(-1, keepdim=True)) / (qkv.std(-1, keepdim=True, correction=0) + _QKV_EPS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        inner = int(shape.embed_dim * shape.mlp_ratio)
        self.fc1, self.fc2 = nn.Linear(shape.embed_dim, inner), nn.Linear(inner, shape.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention without a norm before it (its qkv are normed), feed-forward with one."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.attn = Attention(shape)
        self.norm2 = nn.LayerNorm(shape.embed_dim)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(self.norm2(x))


class VideoTransformer(nn.Module):
    """Class token, position embedding and blocks over tokens [B, T * H * W, D]."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.shape = shape
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(shape.grid) + 1, shape.embed_dim))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.embed_dim)

    def run(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """tokens [B, N, D] of `grid` (T, H, W) -> [B, N, D]; the class token is added and dropped again."""
        cls = self.cls_token.expand(tokens.shape[0], -1, -1)
        x = torch.cat((cls, tokens), dim=1) + self._positions(grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:]

    def _positions(self, grid: tuple[int, int, int]) -> Tensor:
        if grid == self.shape.grid:
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, self.shape.grid).permute(0, 4, 1, 2, 3)
        table = F.interpolate(table, size=grid, mode="trilinear", align_corners=False)
        return torch.cat((self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)), dim=1)


class PatchEmbed(nn.Module):
    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.proj = nn.Conv3d(shape.channels, shape.embed_dim, shape.patch, shape.patch)


class Encoder(VideoTransformer):
    """Video [B, 3, F, H, W] in -1..1 -> moments [B, 2 * z, F / 4, H / 8, W / 8]."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__(shape)
        self.patch_embed = PatchEmbed(shape)
        self.last_layer = nn.Linear(shape.embed_dim, 2 * shape.latent_channels)

    def forward(self, video: Tensor) -> Tensor:
        patches = self.patch_embed.proj(video)
        t, h, w = patches.shape[2:]
        moments = self.last_layer(self.run(patches.flatten(2).transpose(1, 2), (t, h, w)))
        return moments.transpose(1, 2).unflatten(2, (t, h, w))


class Decoder(VideoTransformer):
    """Latent [B, z, t, h, w] -> video [B, 3, 4 t, 8 h, 8 w]."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__(shape)
        self.proj_in = nn.Linear(shape.latent_channels, shape.embed_dim)
        self.last_layer = nn.Conv3d(shape.embed_dim // math.prod(shape.patch), shape.channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        t, h, w = latent.shape[2:]
        x = self.run(self.proj_in(latent.flatten(2).transpose(1, 2)), (t, h, w))
        pt, ph, pw = self.shape.patch
        x = x.unflatten(-1, (pt, ph, pw, -1)).unflatten(1, (t, h, w))  # [B, t, h, w, pt, ph, pw, C]
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return self.last_layer(x)


class AutoencoderKLMagi(ModelMixin, ConfigMixin):
    """The 614 M parameter ViT autoencoder; defaults are the released one. 8x8x4 compression, 16 channels.

    Only the released variant exists: class token, normed qkv, convolution last, no rotary embedding.
    """

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        patch_size: int = 8,
        patch_length: int = 4,
        in_chans: int = 3,
        z_chans: int = 16,
        video_size: int = 256,
        video_length: int = 16,
    ) -> None:
        super().__init__()
        side = video_size // patch_size
        shape = VitShape(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            patch=(patch_length, patch_size, patch_size),
            grid=(video_length // patch_length, side, side),
            channels=in_chans,
            latent_channels=z_chans,
        )
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.tiling: Tiling | None = None

    @property
    def spatial_factor(self) -> int:
        return self.config.patch_size

    @property
    def temporal_factor(self) -> int:
        return self.config.patch_length

    def enable_tiling(self, size: int = 256, frames: int = 12, overlap: float = 0.25) -> None:
        """Tiles of `size` pixels with linear blending, and of `frames` frames without; the pipeline's setting."""
        self.tiling = Tiling(size, frames, overlap, self.spatial_factor, self.temporal_factor)

    def disable_tiling(self) -> None:
        self.tiling = None

    @apply_forward_hook
    def posterior(self, video: Tensor) -> DiagonalGaussianDistribution:
        """[B, 3, F, H, W] in -1..1. One frame is an image: it is repeated, and gives one latent frame."""
        moments = self._moments(video) if self.tiling is None else encode_tiles(self._moments, video, self.tiling)
        return DiagonalGaussianDistribution(moments)

    def encode(
        self, video: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """`posterior` in the form that diffusers expects."""
        posterior = self.posterior(video)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _moments(self, video: Tensor) -> Tensor:
        if video.shape[2] == 1:
            return self.encoder(video.expand(-1, -1, self.temporal_factor, -1, -1))
        return self.encoder(video)

    @apply_forward_hook
    def video(self, latent: Tensor) -> Tensor:
        """[B, z, t, h, w] -> [B, 3, 4 t, 8 h, 8 w], about -1..1, not clamped."""
        return self.decoder(latent) if self.tiling is None else decode_tiles(self.decoder, latent, self.tiling)

    def decode(self, latent: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`video` in the form that diffusers expects."""
        video = self.video(latent)
        return DecoderOutput(sample=video) if return_dict else (video,)
