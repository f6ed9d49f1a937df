"""A tiny SkyReels-V2 diffusion-forcing pipeline with random weights: 4 chunks of 2 latent frames of 3x4 tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from diffusers import (
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)

import mccompile.api

torch.set_num_threads(1)
WIDTH = 32


def transformer(dtype: torch.dtype = torch.float32) -> SkyReelsV2Transformer3DModel:
    torch.manual_seed(0)
    model = SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=32, ffn_dim=64, num_layers=3, rope_max_seq_len=64, num_frame_per_block=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False).to(dtype)


def pipeline() -> SkyReelsV2DiffusionForcingPipeline:
    pipe = SkyReelsV2DiffusionForcingPipeline(
        tokenizer=None, text_encoder=None, transformer=transformer(), vae=None,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeds(samples: int = 1, seed: int = 0) -> dict[str, object]:
    """Text for `samples` videos, in place of prompts."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(samples, 7, 16, generator=generator)
    return {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": -text}


@dataclass(frozen=True)
class Tiny:
    """The pipeline and a way to run it: `run(**more)` gives latents [B, 4, 8, 6, 8]."""

    pipe: SkyReelsV2DiffusionForcingPipeline
    call: dict[str, object]
    captured: mccompile.api.Prepared | None  # captured once per session; the weights are the same

    def run(self, seed: int = 0, **more: object) -> torch.Tensor:
        arguments = {
            "height": 48, "width": 64, "num_frames": 29, "num_inference_steps": 10, "ar_step": 3,
            "guidance_scale": 3.0, "output_type": "latent", **self.call, **more,
        }  # fmt: skip
        arguments.setdefault("generator", torch.Generator().manual_seed(seed))
        return self.pipe(**arguments).frames


@pytest.fixture(scope="session")
def shared() -> Tiny:
    pipe = pipeline()
    return Tiny(pipe, embeds(), mccompile.api.prepare(pipe, call=embeds()))


@pytest.fixture
def tiny(shared: Tiny) -> Iterator[Tiny]:
    """The session's pipeline with its own transformer in place, before and after."""
    own = shared.pipe.transformer
    yield shared
    shared.pipe.transformer = own
    own._set_ar_attention(2)  # what a pipeline's call with another block length leaves behind
    vars(shared.pipe).pop("generate_timestep_matrix", None)


@pytest.fixture(scope="session")
def small_wan() -> WanTransformer3DModel:
    """A Wan transformer of two layers with random weights, called alone."""
    torch.manual_seed(0)
    made = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def captured_wan(small_wan: WanTransformer3DModel) -> mccompile.api.Prepared:
    """Its capture, from two calls of other sizes."""

    def call(frames: int, height: int, width: int) -> dict[str, object]:
        latents = torch.randn(1, 4, frames, height, width)
        text = torch.randn(1, 7, 16)
        return {"hidden_states": latents, "timestep": torch.tensor([900.0]), "encoder_hidden_states": text}

    return mccompile.api.prepare(small_wan, probe=call(4, 8, 14), second=call(6, 10, 22))
