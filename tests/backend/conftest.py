"""A two-layer SkyReels-V2 under MotionCache, captured once per session, and a way to run it by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel

from mccompile.api import Prepared, prepare
from mccompile.api import compile as compile_model
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Timeline
from mccompile.runtime.compiled import CompiledModel

torch.set_num_threads(1)
STEPS = 5


def transformer(seed: int = 0) -> SkyReelsV2Transformer3DModel:
    torch.manual_seed(seed)
    model = SkyReelsV2Transformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=64, num_frame_per_block=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def call(frames: int, height: int, width: int, text: int, timestep: float = 500.0) -> dict[str, object]:
    generator = torch.Generator().manual_seed(frames)
    return {
        "hidden_states": torch.randn(1, 4, frames, height, width, generator=generator),
        "timestep": torch.full((1, frames), timestep),
        "encoder_hidden_states": torch.randn(1, text, 16, generator=generator),
        "enable_diffusion_forcing": True,
        "return_dict": False,
    }


@dataclass(frozen=True)
class Tiny:
    """The captured model and its lowering under motioncache, of which every rule is used within STEPS steps."""

    model: SkyReelsV2Transformer3DModel
    prepared: Prepared
    lowered: LoweredModel
    bound: BoundPolicy


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    model = transformer()
    prepared = prepare(model, probe=call(4, 3, 7, 6), second=call(6, 5, 11, 9))
    compiled = compile_model(
        model, "motioncache", backend="eager", captured=prepared, warmup=1, updates=1, threshold=0.05
    )
    return Tiny(model, prepared, compiled.runner.lowered, compiled.runner.bound)


def run(compiled: CompiledModel, frames: int = 4, height: int = 4, width: int = 5) -> list[torch.Tensor]:
    """The outputs of STEPS calls in which all chunks take the same step."""
    timesteps = tuple(900.0 - 150.0 * i for i in range(STEPS))
    grid = Grid(STEPS, timesteps, tuple(t / 1000 for t in timesteps))
    rows = tuple(tuple(ChunkTime(c, "active", i) for c in range(frames // 2)) for i in range(STEPS))
    clock = Timeline(object(), grid, rows)
    compiled.clock = clock
    outputs = []
    for clock.row in range(STEPS):
        outputs.append(compiled(**call(frames, height, width, 7, timesteps[clock.row]))[0])
    return outputs
