"""Stock Wan pipelines around one tiny transformer with random weights, captured once: 3 latent frames of 2x3 tokens."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from mccompile import api
from mccompile.runtime.compiled import CompiledModel

torch.set_num_threads(1)
SIZE = {"height": 32, "width": 48, "output_type": "latent"}


def wan_transformer(layers: int = 2) -> WanTransformer3DModel:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=64, num_layers=layers, rope_max_seq_len=64,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def unipc(shift: float = 3.0) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def text() -> dict[str, object]:
    made = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(2))
    return {"prompt": None, "prompt_embeds": made, "negative_prompt_embeds": -made}


def wan(kind: type = WanPipeline, model: WanTransformer3DModel | None = None, **more: object) -> WanPipeline:
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": unipc(), **more}
    pipe = kind(transformer=model or wan_transformer(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: WanPipeline, **more: object) -> torch.Tensor:
    """Latents of one generation."""
    wanted = {**text(), **SIZE, "num_inference_steps": 8, "guidance_scale": 3.0, **more}
    if "video" not in wanted and "latents" not in wanted:
        wanted.setdefault("num_frames", 9)
    return pipe(generator=torch.Generator().manual_seed(0), **wanted).frames


@dataclass(frozen=True)
class Wan:
    """A transformer and its capture. Pipelines of the same parts are made anew for each test."""

    model: WanTransformer3DModel
    captured: api.Prepared

    def pipe(self, kind: type = WanPipeline, **more: object) -> WanPipeline:
        return wan(kind, self.model, **more)

    def compile(self, pipe: WanPipeline, policy: object = "fixed_interval", **more: object) -> CompiledModel:
        return api.compile(pipe, policy, backend="eager", captured=self.captured, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def captured_wan() -> Wan:
    pipe = wan()
    return Wan(pipe.transformer, api.prepare(pipe, call=text()))


@pytest.fixture
def own_wan(captured_wan: Wan) -> Wan:
    """A copy of the session's transformer and of its capture, whose structure a test may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # copies of torch's tree specs
        return Wan(*copy.deepcopy((captured_wan.model, captured_wan.captured)))


@pytest.fixture
def tiny_wan(captured_wan: Wan) -> Iterator[Wan]:
    """The session's transformer with the weights that it was captured with, before and after."""
    own = {name: value.clone() for name, value in captured_wan.model.state_dict().items()}
    yield captured_wan
    captured_wan.model.load_state_dict(own)


def actions(compiled: CompiledModel, branch: str = "cond") -> str:
    """What was done in each call of a branch: f for full, r for reuse."""
    return "".join(event.action[0] for event in compiled.events if event.branch == branch)


def steps(compiled: CompiledModel, branch: str = "cond") -> list[int]:
    return [event.step for event in compiled.events if event.branch == branch]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative distance of two results."""
    return float((one - other).norm() / other.norm())


Arguments = Mapping[str, object]
