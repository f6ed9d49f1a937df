"""What schedulers predict, whatever kind they are, and how it is drawn; a scheduler is as it was afterwards."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from mccompile.studio.report.predictions import MOST_CELLS, Colours, Predictions

CLEAN = torch.rand(1, 4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(1, 4, 3, 6, 8, generator=torch.Generator().manual_seed(1))


def flow_euler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def run(pipe: SimpleNamespace, steps: int = 5) -> None:
    """Flow matching with the true velocity: every step predicts the clean latents."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    latents = NOISE.clone()
    for t in scheduler.timesteps:
        latents = scheduler.step(NOISE - CLEAN, t, latents, return_dict=False)[0]
    assert torch.allclose(latents, CLEAN, atol=1e-4)


@pytest.mark.parametrize("make", [flow_euler, unipc])
def test_a_flow_is_predicted_at_every_step(make: object) -> None:
    pipe = SimpleNamespace(scheduler=make())  # type: ignore[operator]
    before = inspect.signature(pipe.scheduler.step)
    with Predictions(pipe) as seen:
        assert inspect.signature(pipe.scheduler.step) == before  # pipelines ask for its arguments
        run(pipe)
    assert "step" not in vars(pipe.scheduler)
    (kept,) = seen._by.values()
    assert kept.steps == [0, 1, 2, 3, 4]
    assert all(np.allclose(clean, CLEAN[0], atol=2e-3) for clean in kept.clean)


def test_a_scheduler_that_says_what_it_predicts_is_believed() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    with Predictions(SimpleNamespace(scheduler=scheduler)) as seen:
        said = [
            scheduler.step(NOISE[:, :, 0], t, scheduler.scale_model_input(CLEAN[:, :, 0], t)).pred_original_sample
            for t in scheduler.timesteps
        ]
    (kept,) = seen._by.values()
    assert all(np.allclose(a[:, 0], b[0], rtol=1e-2, atol=1e-2) for a, b in zip(kept.clean, said, strict=True))


def test_copies_for_each_frame_are_told_apart() -> None:
    """Frames of a diffusion-forcing run have schedulers of their own; given frames, never stepped, lie first."""
    pipe = SimpleNamespace(scheduler=unipc())
    with Predictions(pipe) as seen:
        pipe.scheduler.set_timesteps(4)
        for frame in (1, 2):
            own = copy.deepcopy(pipe.scheduler)
            latents = NOISE[:, :, frame]
            for t in own.timesteps:
                latents = own.step((NOISE - CLEAN)[:, :, frame], t, latents, return_dict=False)[0]
    found = seen._by_frame(3)
    assert {frame: list(steps) for frame, steps in found.items()} == {1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}
    assert np.allclose(found[2][3], CLEAN[0, :, 2], atol=2e-3)
    assert not seen._by_frame(1)
    assert "stepped 2 latent frames" in seen.why


def test_a_linear_codec_is_drawn_as_it_decodes() -> None:
    """Colours that are a linear map of the channels are found again, and so are thumbnails of chunks."""
    mix = torch.rand(4, 3, generator=torch.Generator().manual_seed(2)).numpy()
    pixels = np.einsum("cfhw,cd->fhwd", CLEAN[0].numpy(), mix) * 90
    video = pixels.repeat(8, 1).repeat(8, 2).round().clip(0, 255).astype(np.uint8)
    pipe = SimpleNamespace(scheduler=flow_euler())
    with Predictions(pipe) as seen:
        run(pipe)
    drawn = seen.thumbnails(video, frames=3, chunks=3)
    assert drawn.keys() == {(chunk, step) for chunk in range(3) for step in range(5)}
    assert all(np.abs(drawn[c, s].astype(int) - video[c]).max() <= 2 for c, s in drawn)
    assert seen.seconds > 0


def test_what_cannot_be_drawn_says_why() -> None:
    class Silent:
        def step(self, output: torch.Tensor, at: object, sample: torch.Tensor) -> tuple[torch.Tensor]:
            return (sample,)

    silent = SimpleNamespace(scheduler=Silent())
    with Predictions(silent) as seen:
        silent.scheduler.step(CLEAN, 0, CLEAN)
    assert (seen.thumbnails(np.zeros((3, 8, 8, 3), np.uint8), 3, 1), seen.why) == (
        {}, "Silent does not tell what it predicts",
    )  # fmt: skip
    assert Predictions(SimpleNamespace()).why == "the pipeline has no scheduler to ask"
    flat = SimpleNamespace(scheduler=flow_euler())
    flat.scheduler.set_timesteps(2)
    with Predictions(flat) as seen:
        flat.scheduler.step(NOISE[0, :, :, 0], flat.scheduler.timesteps[0], NOISE[0, :, :, 0])
    assert seen.why == "the latents come flat, without height and width"


def test_large_latents_are_kept_small() -> None:
    wide = torch.rand(1, 4, 2, 45, 80)
    pipe = SimpleNamespace(scheduler=flow_euler())
    pipe.scheduler.set_timesteps(1)
    with Predictions(pipe) as seen:
        pipe.scheduler.step(wide, pipe.scheduler.timesteps[0], wide)
    (kept,) = seen._by.values()
    assert max(kept.clean[0].shape[2:]) <= MOST_CELLS
    assert kept.clean[0].dtype == np.float16


def test_colours_of_latents_that_are_no_numbers() -> None:
    latents = np.full((1, 4, 2, 2), np.nan, np.float16)
    colours = Colours.fitted(latents, np.full((1, 16, 16, 3), 80, np.uint8))
    assert colours.draw(latents[0]).shape == (16, 16, 3)
