"""The clean frames that a scheduler predicts at each step, kept small, and drawn by the finished video's own colours.

Nothing is decoded. A latent's colours are a linear map of its channels, fitted once on the finished video and its
latents, for whatever VAE. So a thumbnail costs one small matrix product.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType, TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

MOST_CELLS = 32  # along the longer side of a kept prediction
MOST_PIXELS = 64  # along the longer side of a thumbnail
_DETAIL = 8  # pixels that a cell of latents is drawn with, at most, along a side


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions of one scheduler. steps: own steps, one for each. clean: [C, F, h, w] of each."""

    steps: list[int]
    clean: list[NDArray[np.float16]]


class Predictions:
    """Watches the steps of a pipeline's scheduler while inside. why: why there is nothing to draw, "" if there is.

    seconds: that watching took.
    """

    def __init__(self, pipe: object) -> None:
        scheduler = getattr(pipe, "scheduler", None)
        self._scheduler = scheduler if callable(getattr(scheduler, "step", None)) else None
        self.why = "" if self._scheduler is not None else "the pipeline has no scheduler to ask"
        self.seconds = 0.0
        self._by: dict[int, Predicted] = {}  # by the scheduler: some pipelines have a copy for each frame
        self._held: list[object] = []  # so that no two have one identity

    def __enter__(self) -> Self:
        if self._scheduler is not None:
            # Bound to the object, so that a pipeline's deep copies of it are watched too, each as itself.
            self._scheduler.step = MethodType(self._watched(type(self._scheduler).step), self._scheduler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._scheduler is not None:
            del self._scheduler.step

    def _watched(self, own: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(own)
        def step(
            scheduler: object, output: torch.Tensor, at: object, sample: torch.Tensor, *more: object, **named: object
        ) -> object:
            given = sample.clone() if _needs_sample(scheduler) else sample
            result = own(scheduler, output, at, sample, *more, **named)
            begun = time.perf_counter()
            self._note(scheduler, output, given, result)
            self.seconds += time.perf_counter() - begun
            return result

        return step

    def _note(self, scheduler: object, output: torch.Tensor, sample: torch.Tensor, result: object) -> None:
        clean = predicted(scheduler, output, sample, result)
        if clean is None:
            self.why = self.why or f"{type(scheduler).__name__} does not tell what it predicts"
            return
        if clean.dim() not in (4, 5):
            self.why = self.why or "the latents come flat, without height and width"
            return
        frames = clean[0] if clean.dim() == 5 else clean[0].unsqueeze(1)
        known = self._by.get(id(scheduler))
        if known is None:
            known = self._by[id(scheduler)] = Predicted([], [])
            self._held.append(scheduler)
        index = getattr(scheduler, "step_index", None)
        known.steps.append(len(known.steps) if index is None else int(index) - 1)
        known.clean.append(_pooled(frames))

    def thumbnails(
        self, video: NDArray[np.uint8], frames: int, chunks: int
    ) -> dict[tuple[int, int], NDArray[np.uint8]]:
        """By (chunk, own step) the middle frame of the chunk as it was predicted, uint8 [h, w, 3]. Sets `why`.

        video: the finished one, [F, H, W, 3]. frames: latent frames of it, in so many chunks.
        """
        begun = time.perf_counter()
        found = self._by_frame(frames) if not self.why else {}
        drawn: dict[tuple[int, int], NDArray[np.uint8]] = {}
        if found:
            clean = np.stack([next(reversed(found[f].values())) for f in sorted(found)])
            at = [round(f * (len(video) - 1) / max(1, frames - 1)) for f in sorted(found)]
            colours = Colours.fitted(clean, video[at])
            each = max(1, frames // max(1, chunks))
            for chunk in range(chunks):
                for step, latents in found.get(chunk * each + each // 2, {}).items():
                    drawn[chunk, step] = colours.draw(latents)
        self.seconds += time.perf_counter() - begun
        return drawn

    def _by_frame(self, frames: int) -> dict[int, dict[int, NDArray[np.float16]]]:
        """By latent frame and own step, [C, h, w]. Schedulers of single frames come in the frames' order."""
        apart = list(self._by.values())
        each = max((p.clean[0].shape[1] for p in apart), default=0)
        if not apart:
            self.why = "the pipeline did not ask its scheduler for a step"
        elif each * len(apart) > frames:
            self.why = f"the scheduler stepped {each * len(apart)} latent frames, and the video has {frames}"
        if self.why:
            return {}
        first = frames - each * len(apart)  # frames that were given are never stepped, and come first
        return {
            first + number * each + f: {s: c[:, f] for s, c in zip(p.steps, p.clean, strict=True)}
            for number, p in enumerate(apart)
            for f in range(each)
        }


def predicted(scheduler: object, output: torch.Tensor, sample: torch.Tensor, result: object) -> torch.Tensor | None:
    """The clean latents that a step of a diffusers scheduler took for true; None where it does not tell.

    Its own word comes first. A multistep solver keeps what it converted the model's output to. For flow matching it is
    the sample less sigma times the velocity.
    """
    said = result[1] if isinstance(result, tuple) and len(result) > 1 else getattr(result, "pred_original_sample", None)
    if isinstance(said, torch.Tensor):
        return said
    config = getattr(scheduler, "config", {})
    kept = getattr(scheduler, "model_outputs", None) or [None]
    if isinstance(kept[-1], torch.Tensor) and _keeps_clean(config):
        return kept[-1]
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if _needs_sample(scheduler) and isinstance(sigmas, torch.Tensor) and index:
        return sample - sigmas[int(index) - 1].to(sample) * output
    return None


def _keeps_clean(config: object) -> bool:
    """Whether a multistep solver's past outputs are clean samples (UniPC, DPM-Solver++)."""
    told = dict(config) if isinstance(config, dict) else {}
    return bool(told.get("predict_x0")) or str(told.get("algorithm_type", "")).endswith("dpmsolver++")


def _needs_sample(scheduler: object) -> bool:
    """Whether it is a flow-matching scheduler of single steps."""
    config = getattr(scheduler, "config", {})
    flow = "FlowMatch" in type(scheduler).__name__ or dict(config).get("prediction_type") == "flow_prediction"
    return flow and not _keeps_clean(config)


def _pooled(frames: torch.Tensor) -> NDArray[np.float16]:
    """[C, F, h, w] on the host, with at most MOST_CELLS along a side."""
    shrink = math.ceil(max(frames.shape[2:]) / MOST_CELLS)
    small = frames.detach().float()
    if shrink > 1:
        small = torch.nn.functional.avg_pool2d(small, shrink, ceil_mode=True)
    return small.cpu().numpy().astype(np.float16)


@dataclass(frozen=True, slots=True)
class Colours:
    """A linear map from the channels of a cell of latents to its pixels. weights: [C + 1, detail * detail * 3]."""

    weights: NDArray[np.float64]
    detail: int

    @classmethod
    def fitted(cls, latents: NDArray[np.float16], frames: NDArray[np.uint8]) -> Colours:
        """The map that draws latents [N, C, h, w] most like the frames [N, H, W, 3] that they became."""
        count, _, high, wide = latents.shape
        detail = max(1, min(_DETAIL, MOST_PIXELS // max(high, wide)))
        size = (wide * detail, high * detail)
        small = np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BOX)) for f in frames])
        cells = small.reshape(count, high, detail, wide, detail, 3).transpose(0, 1, 3, 2, 4, 5)
        wanted = cells.reshape(count * high * wide, -1).astype(np.float64)
        found, *_ = np.linalg.lstsq(_rows(latents), wanted, rcond=1e-6)
        return cls(found.astype(np.float64), detail)

    def draw(self, latents: NDArray[np.float16]) -> NDArray[np.uint8]:
        """The picture of latents [C, h, w], uint8 [h * detail, w * detail, 3]."""
        _, high, wide = latents.shape
        cells = (_rows(latents[None]) @ self.weights).reshape(high, wide, self.detail, self.detail, 3)
        pixels = cells.transpose(0, 2, 1, 3, 4).reshape(high * self.detail, wide * self.detail, 3)
        return np.nan_to_num(pixels).round().clip(0, 255).astype(np.uint8)


def _rows(latents: NDArray[np.float16]) -> NDArray[np.float64]:
    """The channels of each cell of [N, C, h, w], and a one."""
    cells = latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1]).astype(np.float64)
    return np.concatenate([np.nan_to_num(cells), np.ones((len(cells), 1))], axis=1)
