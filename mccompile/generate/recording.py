"""Reads a recorded trace of transformer calls, and checks that its settings, weights and tensors fit together."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mccompile.generate.errors import TraceSettings, TraceTensors, TraceUnreadable

BRANCHES = ("cond", "uncond")
_TRACE = (
    "latents", "timesteps", "update", "mask", "ctx_cond", "ctx_uncond", "out_cond", "out_uncond",
)  # fmt: skip
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Rules:
    """How the recorded run decided (MotionCache, arXiv 2605.01725).

    warm: the last warm-up step (warm + 1 steps are computed). updates: refreshes before motion weighs in.
    per_token: changes and decisions per token from the start. norm: of the motion, with its floor. vote, share:
    None where the run had no such guard. coefficients: highest power first.
    """

    warm: int
    updates: int
    threshold: float
    per_token: bool
    norm: str
    floor: float
    vote: float | None
    share: float | None
    coefficients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """Calls of one generation. N calls, G chunks of `frames` latent frames, P tokens per frame, branches cond, uncond.

    latents [N, C, F, H, W], timesteps [N, F], update [N, G] bool (the chunk is active), contexts: [1, L, D] per
    branch, outputs: [N, C', F, H, W] per branch, masks [N, 2, G, frames * P] bool (the token was computed).
    """

    path: Path
    chunks: int
    frames: int
    heads: int
    settings: Mapping[str, object]
    weights: Mapping[str, torch.Tensor]
    latents: torch.Tensor
    timesteps: torch.Tensor
    update: torch.Tensor
    masks: torch.Tensor
    contexts: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]

    @property
    def calls(self) -> int:
        return self.latents.size(0)


def read_recording(path: Path) -> Recording:
    """The trace at `path` with the settings in the .json beside it.

    Raises TraceUnreadable, TraceSettings, TraceTensors.
    """
    settings = _read_settings(path.with_suffix(".json"))
    tensors = _read_tensors(path)
    named = f"{path.with_suffix('.json')}"
    recording = Recording(
        path=path,
        chunks=_number(settings, "groups", int, 1, named),
        frames=_number(settings, "gs", int, 1, named),
        heads=_number(settings, "heads", int, 1, named),
        settings=settings,
        weights={k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")},
        latents=tensors["trace.latents"],
        timesteps=tensors["trace.timesteps"],
        update=tensors["trace.update"].bool(),
        masks=tensors["trace.mask"].bool(),
        contexts={b: tensors[f"trace.ctx_{b}"] for b in BRANCHES},
        outputs={b: tensors[f"trace.out_{b}"] for b in BRANCHES},
    )
    _check_sizes(recording)
    return recording


def rules_of(recording: Recording) -> Rules:
    """The policy settings of a recording. Raises TraceSettings for one that is missing or means nothing."""
    path, settings = f"{recording.path.with_suffix('.json')}", recording.settings
    share = _share(settings, "minr", path)
    return Rules(
        warm=_number(settings, "warm", int, 0, path),
        updates=_number(settings, "p1", int, 0, path),
        threshold=_number(settings, "thr", float, 0, path),
        per_token=_word(settings, "mode", ("global", "token"), path) == "token",
        norm=_word(settings, "norm", ("mean", "max", "max_rescale"), path),
        floor=_share(settings, "floor", path),
        vote=None if _entry(settings, "tc", path) is None else _share(settings, "tc", path),
        share=share or None,
        coefficients=_coefficients(settings, path),
    )


def _read_settings(path: Path) -> Mapping[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceUnreadable(str(path), (error.strerror or "no file").lower()) from None
    except (ValueError, RecursionError) as error:
        raise TraceSettings(str(path), f"it is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise TraceSettings(str(path), "a JSON object is expected")
    return found


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise TraceUnreadable(str(path), "no such file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise TraceUnreadable(str(path), f"not a safetensors file ({error})") from None
    missing = [f"trace.{n}" for n in _TRACE if f"trace.{n}" not in tensors]
    if missing:
        raise TraceTensors(str(path), f"{', '.join(missing)} missing")
    return tensors


def _check_sizes(r: Recording) -> None:
    """The sizes that the docstring of Recording states. Raises TraceTensors with the first that differs."""
    if r.latents.dim() != 5:
        raise TraceTensors(str(r.path), f"trace.latents is {list(r.latents.shape)}; five axes are expected")
    calls, _, frames, height, width = r.latents.shape
    if frames != r.chunks * r.frames:
        why = f"trace.latents has {frames} frames, the settings say {r.chunks} groups of {r.frames}"
        raise TraceTensors(str(r.path), why)
    patch = r.weights.get("patch_embedding.weight")
    if patch is None or patch.dim() != 5 or not patch.numel():
        raise TraceTensors(str(r.path), "weights.patch_embedding.weight is missing or has not five axes")
    tokens = math.prod((r.frames, height, width)) // math.prod(patch.shape[2:])
    wanted: dict[str, tuple[torch.Tensor, tuple[int, ...]]] = {
        "timesteps": (r.timesteps, (calls, frames)),
        "update": (r.update, (calls, r.chunks)),
        "mask": (r.masks, (calls, len(BRANCHES), r.chunks, tokens)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise TraceTensors(str(r.path), f"trace.{name} is {list(tensor.shape)}; {list(shape)} is expected")
    for b in BRANCHES:
        out, context = r.outputs[b], r.contexts[b]
        if out.dim() != 5 or (out.size(0), *out.shape[2:]) != (calls, frames, height, width):
            raise TraceTensors(str(r.path), f"trace.out_{b} is {list(out.shape)}; latents are {list(r.latents.shape)}")
        if context.dim() != 3 or context.size(0) != 1:
            raise TraceTensors(str(r.path), f"trace.ctx_{b} is {list(context.shape)}; [1, length, width] is expected")


def _entry(settings: Mapping[str, object], key: str, path: str) -> object:
    if key not in settings:
        raise TraceSettings(path, f"`{key}` is missing")
    return settings[key]


def _number(settings: Mapping[str, object], key: str, kind: type[_Number], least: float, path: str) -> _Number:
    value = _entry(settings, key, path)
    if _finite(value):
        fits = value >= least and (kind is float or float(value).is_integer())
        if fits:
            return kind(value)
    what = "a whole number" if kind is int else "a number"
    raise TraceSettings(path, f"`{key}` is {json.dumps(value)}; {what} of at least {least} is expected")


def _finite(value: object) -> TypeGuard[int | float]:
    """Whether it is a number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < sys.float_info.max


def _share(settings: Mapping[str, object], key: str, path: str) -> float:
    value = _number(settings, key, float, 0, path)
    if value > 1:
        raise TraceSettings(path, f"`{key}` is {value}; a share from 0 to 1 is expected")
    return value


def _word(settings: Mapping[str, object], key: str, known: tuple[str, ...], path: str) -> str:
    value = _entry(settings, key, path)
    if not isinstance(value, str) or value not in known:
        raise TraceSettings(path, f"`{key}` is {json.dumps(value)}; one of {', '.join(known)} is expected")
    return value


def _coefficients(settings: Mapping[str, object], path: str) -> tuple[float, ...]:
    value = _entry(settings, "coef", path)
    numbers = isinstance(value, list) and all(_finite(c) for c in value)
    if not numbers or not value:
        raise TraceSettings(path, "`coef` is not a list of numbers, highest power first")
    return tuple(float(c) for c in value)  # type: ignore[attr-defined]
