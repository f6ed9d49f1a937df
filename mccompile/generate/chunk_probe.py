"""Records how a chunk-by-chunk pipeline calls its transformer: a short run at two small sizes, nothing left out.

Its calls differ in how many chunks they hold, which a first call does not show, so the real transformer runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from mccompile.generate.errors import NotAPipeline, ProbeFailed
from mccompile.generate.probe import Call, replaced
from mccompile.models.magi.predict import UNSEEN_ROWS
from mccompile.runtime.stand_in import StandIn

SIZES = ((3, 7), (5, 11))  # rows and columns of tokens, all different
MORE_TEXT = 64  # padding that tells the length of the text from a constant


class _Listener(StandIn):
    """Runs the transformer and keeps its calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.calls: list[Call] = []

    def forward(self, *args: object, **kwargs: object) -> object:
        call = self.arguments_of(*args, **kwargs)
        self.calls.append(call)
        return self.model(**call)


def record_window_calls(pipe: object, arguments: Mapping[str, object]) -> tuple[Call, Call]:
    """The transformer's keyword arguments at two small sizes, with different numbers of chunks and of cached keys.

    arguments: further arguments of the pipeline's call. Raises NotAPipeline, ProbeFailed.
    """
    if not isinstance(getattr(pipe, "transformer", None), nn.Module) or not callable(pipe):
        raise NotAPipeline(type(pipe).__name__)
    settings = pipe.scheduler.settings  # type: ignore[attr-defined]
    most = max(settings.window_size, 2)
    runs = [_record(pipe, chunks, size, arguments) for chunks, size in zip((most, most + 2), SIZES, strict=True)]
    first = max(runs[0], key=_preference)
    others = [c for c in runs[1] if _chunks(c) != _chunks(first)] or runs[1]
    second = max(others, key=_preference)
    if first["encoder_hidden_states"].shape[2] == second["encoder_hidden_states"].shape[2]:  # type: ignore[attr-defined]
        second = _longer_text(second)
    return first, second


def _chunks(call: Call) -> int:
    return call["timestep"].shape[1]  # type: ignore[attr-defined]


def _preference(call: Call) -> tuple[bool, int]:
    """Calls that read the keys of a chunk before others, then those of most chunks."""
    return call["cached_key_values"][0][0].shape[1] > UNSEEN_ROWS, _chunks(call)  # type: ignore[index]


def _longer_text(call: Call) -> Call:
    text, mask = call["encoder_hidden_states"], call["encoder_attention_mask"]
    assert isinstance(text, torch.Tensor)
    assert isinstance(mask, torch.Tensor)
    more = {
        "encoder_hidden_states": F.pad(text, (0, 0, 0, MORE_TEXT)),
        "encoder_attention_mask": F.pad(mask, (0, MORE_TEXT)),
    }
    return {**call, **more}


def _record(pipe: object, chunks: int, size: tuple[int, int], arguments: Mapping[str, object]) -> list[Call]:
    """Every call of a run of so many chunks, as one that asks for no keys."""
    settings, patch = pipe.scheduler.settings, pipe.transformer.config.patch_size  # type: ignore[attr-defined]
    # Two steps in each stage: in the second of them a chunk that has just left is read from the cache.
    steps = 2 * math.lcm(settings.window_size, max(1, len(settings.noise2clean_kvrange)))
    height, width = (8 * patch * n for n in size)
    frames = chunks * settings.chunk_width * settings.temporal_factor
    wanted = {"num_frames": frames, "height": height, "width": width, "num_inference_steps": steps}
    text = {} if "prompt_embeds" in arguments else {"prompt": "a video"}
    listener = _Listener(pipe.transformer)  # type: ignore[attr-defined]
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    try:
        with replaced(pipe, listener):
            pipe(**{**text, **arguments, **wanted, "output_type": "latent"})  # type: ignore[operator]
    except (ValueError, TypeError, RuntimeError) as error:
        raise ProbeFailed(type(pipe).__name__, wanted, error) from error
    finally:
        pipe._progress_bar_config = bar  # type: ignore[attr-defined]
    return [{**call, "return_kv_chunks": 0} for call in listener.calls]
