"""Runs one generation: it calls the stock pipeline with named settings and returns the frames."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mccompile.generate.errors import NotFinite, OptionRefused
from mccompile.generate.media import read_image, read_video
from mccompile.models.embedded import DEFAULTS
from mccompile.pipelines.errors import PipelineFailed
from mccompile.pipelines.finding import driver_for

Video = NDArray[np.float32]  # [F, H, W, 3] in 0..1
OnStep = Callable[[int, int], None]  # calls of the scheduler's loop done, and in all


@dataclass(frozen=True, slots=True)
class Settings:
    """A generation by the names that diffusers gives its arguments; None leaves one to the pipeline.

    image, last_image, video: paths of files, which `call_arguments` reads.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    ar_step: int | None = None
    causal_block_size: int | None = None
    strength: float | None = None
    image: str | None = None
    last_image: str | None = None
    video: str | None = None

    def given(self) -> dict[str, object]:
        """What is not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


EMBEDDED_SETTINGS = Settings(
    prompt=DEFAULTS.prompt,
    num_inference_steps=DEFAULTS.num_inference_steps,
    num_frames=DEFAULTS.num_frames,
    height=DEFAULTS.height,
    width=DEFAULTS.width,
    guidance_scale=DEFAULTS.guidance_scale,
    ar_step=DEFAULTS.ar_step,
)


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation. seconds: wall time of the pipeline's call, text and VAE included."""

    video: Video
    seconds: float


def call_arguments(pipe: object, settings: Settings) -> dict[str, object]:
    """The arguments of the pipeline's call, with the images and the video that it starts from.

    Raises OptionRefused (MC0705) for an argument that it does not have, and for a file that cannot be read.
    """
    accepted = inspect.signature(pipe.__call__).parameters  # type: ignore[operator]
    arguments = settings.given()
    for name in arguments:
        if name not in accepted:
            option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
            raise OptionRefused(option, f"{type(pipe).__name__} has no argument `{name}`", "leave it out")
    arguments |= {name: read(str(arguments[name])) for name, read in _READERS.items() if name in arguments}
    return driver_for(pipe).completed(pipe, arguments)


_OPTIONS = {"num_inference_steps": "steps", "num_frames": "frames"}
_READERS: Mapping[str, Callable[[str], object]] = {"image": read_image, "last_image": read_image, "video": read_video}


def generate(
    pipe: object, arguments: Mapping[str, object], seed: int, on_step: OnStep, stop_after: int | None = None
) -> Generation:
    """Runs the pipeline once from `seed`.

    stop_after: interrupt the denoising after so many steps (a warm-up); the video is then of no use.
    Raises PipelineFailed (MC0706) where the pipeline refuses its arguments, NotFinite (MC0716) for a broken video.
    """
    device = torch.device(str(getattr(pipe, "_execution_device", "cpu")))

    def ended(pipeline: object, index: int, _: object, kept: dict[str, object]) -> dict[str, object]:
        on_step(index + 1, int(getattr(pipeline, "num_timesteps", index + 1)))
        if stop_after is not None and index + 1 >= stop_after:
            pipeline._interrupt = True  # type: ignore[attr-defined]  # what diffusers documents for stopping early
        return kept

    _wait(device)
    begun = time.perf_counter()
    try:
        result = pipe(  # type: ignore[operator]
            **arguments,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            callback_on_step_end=ended,
        )
    except (ValueError, TypeError) as error:
        raise PipelineFailed(type(pipe).__name__, error) from error
    _wait(device)
    seconds = time.perf_counter() - begun
    video = np.asarray(result.frames[0], dtype=np.float32)
    if stop_after is None and not np.isfinite(video).all():
        raise NotFinite(type(pipe).__name__, float(1.0 - np.isfinite(video).mean()))
    return Generation(video, seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
