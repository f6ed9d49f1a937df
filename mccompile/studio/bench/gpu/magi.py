"""MAGI-1's transformer with random weights: one pass over a window of chunks that are all being denoised."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from mccompile import api
from mccompile.models.magi.cache import no_keys
from mccompile.models.magi.config import MAGI_4_5B, MagiModelConfig
from mccompile.models.magi.embeddings import ADALN_KEPT
from mccompile.models.magi.predict import UNSEEN_ROWS
from mccompile.models.magi.transformer import MagiTransformer3DModel
from mccompile.pipelines.probe import ExampleCall


@dataclass(frozen=True, slots=True)
class MagiSubject:
    """A MAGI-1 transformer and a window: `chunks` of `frames` latent frames of height x width tokens each."""

    config: MagiModelConfig
    chunks: int
    frames: int
    height: int
    width: int
    text_tokens: int

    @property
    def tokens(self) -> int:
        return self.chunks * self.frames * self.height * self.width

    @property
    def layers(self) -> int:
        return self.config.num_layers

    def model(self, device: torch.device, dtype: torch.dtype) -> MagiTransformer3DModel:
        """The transformer, its weights drawn on the device; the modules that MAGI-1 keeps in float32 stay so."""
        torch.manual_seed(0)
        with device:
            made = MagiTransformer3DModel(**dataclasses.asdict(self.config))
        for layer in made.videodit_blocks.layers:
            for name, module in layer.named_modules():
                kept = any(part in name for part in made._keep_in_fp32_modules)
                for parameter in () if kept else module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
        return made.eval().requires_grad_(False)

    def call(self, device: torch.device, dtype: torch.dtype) -> ExampleCall:
        """Keyword arguments of one pass, batch 1: each chunk at a time of its own, attending to those before it."""
        tokens = self.frames * self.height * self.width
        patch, frames = self.config.patch_size, self.chunks * self.frames
        size = (1, self.config.latent_channels, frames, self.height * patch, self.width * patch)
        latents = torch.randn(size, device=device)
        text = (1, self.chunks, self.text_tokens)
        ranges = torch.tensor([[0, i + 1] for i in range(self.chunks)]) * tokens + UNSEEN_ROWS
        times = torch.linspace(0.1, 0.9, self.chunks)[None]
        return {
            "hidden_states": latents,
            "timestep": times.to(device),
            "encoder_hidden_states": torch.randn(*text, self.config.caption_channels, device=device),
            "encoder_attention_mask": torch.ones(text, dtype=torch.bool, device=device),
            "adaln_row": torch.tensor([self.config.caption_max_length + ADALN_KEPT], device=device),
            "kv_ranges": ranges,
            "frame_offset": torch.tensor(0, device=device),
            "distill_span": None,
            "cached_key_values": no_keys(self.config, 1, latents, dtype, UNSEEN_ROWS),
            "return_kv_chunks": 0,
            "return_dict": False,
        }

    def prepared(self, model: MagiTransformer3DModel) -> api.Prepared:
        """The model, captured from two small windows."""
        device, dtype = model.final_linear.linear.weight.device, model.compute_dtype
        sizes = ((2, 3, 7), (3, 5, 11))
        small, large = (
            dataclasses.replace(self, chunks=c, height=h, width=w).call(device, dtype) for c, h, w in sizes
        )
        return api.prepare(model, probe=small, second=large)


MAGI_REAL = MagiSubject(MAGI_4_5B, chunks=4, frames=6, height=45, width=45, text_tokens=800)
"""MAGI-1 4.5B at its default size, 720x720: 48,600 tokens."""

MAGI_TINY = MagiSubject(
    dataclasses.replace(
        MAGI_4_5B, num_layers=2, hidden_size=64, ffn_hidden_size=96, num_attention_heads=8, num_query_groups=8,
        kv_channels=8, caption_channels=16, caption_max_length=64,
    ),
    chunks=2, frames=2, height=2, width=4, text_tokens=8,
)  # fmt: skip
"""For rehearsals."""
