"""Pipelines that go chunk by chunk and fill the keys of a finished chunk by a pass of its own: AnyFlow-FAR.

Each chunk is a request with all steps of the schedule. The pass that fills is over finished chunks. It writes into the
pipeline's own cache and gives no latents, so the model itself runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.shallow import is_hollow
from mccompile.pipelines.driver import Driver
from mccompile.pipelines.errors import ProbeFailed
from mccompile.pipelines.grids import grid_of
from mccompile.pipelines.probe import PIPELINES_WANT, SIZES, ExampleCall, arguments_at, replaced
from mccompile.pipelines.steps import StepClock
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.errors import NoClock
from mccompile.runtime.stand_in import StandIn, unwrapped

FILLS = "is_cache_step"  # the flag of a pass that fills
TOKENS = ((2, 3), (3, 5))  # rows and columns of the coarsest tokens, all different
UNSEEN = ((3, 2), (2, 4))  # further sizes, for runs that prove something of a captured model
_DEPEND = (*SIZES, "chunk_partition", "latents", "video", "video_latents", "callback_on_step_end")


def fills(call: Mapping[str, object]) -> bool:
    """Whether a call of the transformer fills keys, and gives no latents."""
    flags = call.get("kv_cache_flag")
    return isinstance(flags, Mapping) and bool(flags.get(FILLS))


class FillingClock(StepClock):
    """The steps of each chunk in turn, and the passes over finished chunks behind them."""

    def moment(self, branch: str, inputs: Mapping[str, object], place: int | None = None) -> Moment:
        """The step of the chunk under way. Raises NoClock (MC0601), UnknownStep (MC0604)."""
        if not fills(inputs):
            return super().moment(branch, inputs, place)
        if self._watch is None:
            raise NoClock
        generation, known = self._watch.generation(), self._schedule
        clean = (ChunkTime(0, "finished", 0, clean=True),)
        if known is None or known.generation != generation:  # of a video that is given
            return Moment(f"given {generation}", 0, branch, grid_of(self._pipe.scheduler), clean, 1)  # type: ignore[attr-defined]
        return Moment(known.request, known.first + known.grid.steps, branch, known.grid, clean, 1, first=known.first)


class _Listener(StandIn):
    """Runs the transformer and keeps its last call that gives latents. One without weights gives zeros."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.call: ExampleCall | None = None
        self.set_up()

    def forward(self, *args: object, **kwargs: object) -> object:
        call = self.arguments_of(*args, **kwargs)
        if not fills(call):
            self.call = pytree.tree_map_only(torch.Tensor, torch.clone, call)  # the cache is written into later
        if is_hollow(self.model):
            latents = call["hidden_states"]
            assert isinstance(latents, torch.Tensor)
            return (None if fills(call) else torch.zeros_like(latents)), call.get("kv_cache")
        return self.model(**call)


class ByChunkDriver(Driver):
    """Pipelines that fill a cache of keys."""

    def fits(self, pipe: object) -> bool:
        return callable(getattr(pipe, "encode_kv_cache", None))

    def clock(self, pipe: object) -> FillingClock:
        return FillingClock(pipe)

    def record(
        self, pipe: object, arguments: Mapping[str, object], larger: bool = False
    ) -> tuple[ExampleCall, ExampleCall]:
        """Steps of the last chunk of two videos, which read keys of another number of chunks each."""
        one, two = (_record(pipe, at) for at in _runs(pipe, arguments, TOKENS))
        return one, two

    def small_runs(self, pipe: object, arguments: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
        one, two = _runs(pipe, arguments, UNSEEN)
        return one, two

    def completed(self, pipe: object, arguments: Mapping[str, object]) -> dict[str, object]:
        """The chunks of a video that has another length than the default: the first of them, and as many more."""
        found, frames = dict(arguments), arguments.get("num_frames")
        own = pipe.transformer.config.chunk_partition  # type: ignore[attr-defined]
        if isinstance(frames, int) and "chunk_partition" not in found:
            latent, most = (frames - 1) // pipe.vae_scale_factor_temporal + 1, max(own)  # type: ignore[attr-defined]
            if latent != sum(own):
                rest = max(0, latent - own[0])
                last = [rest % most] if rest % most else []
                found["chunk_partition"] = [min(own[0], latent), *[most] * (rest // most), *last]
        return found


def _runs(
    pipe: object, arguments: Mapping[str, object], tokens: tuple[tuple[int, int], ...]
) -> list[dict[str, object]]:
    """The arguments of two short runs, so long that chunks are compressed."""
    config = pipe.transformer.config  # type: ignore[attr-defined]
    most = int(config.full_chunk_limit)
    chunks = [[1] * most + [2], [1] * (most + 1) + [3]]
    side = lcm(pipe.vae_scale_factor_spatial * max(config.compressed_patch_size), PIPELINES_WANT[0])  # type: ignore[attr-defined]
    others = {k: v for k, v in arguments.items() if k not in _DEPEND}
    made = []
    for own, (height, width) in zip(chunks, tokens, strict=True):
        frames = (sum(own) - 1) * pipe.vae_scale_factor_temporal + 1  # type: ignore[attr-defined]
        size = {"num_frames": frames, "height": height * side, "width": width * side}
        made.append(arguments_at(pipe, size, {"num_inference_steps": 1, **others, "chunk_partition": own}))
    return made


def _record(pipe: object, arguments: dict[str, object]) -> ExampleCall:
    """The last call that gives latents of a run. Raises ProbeFailed."""
    listener = _Listener(unwrapped(pipe.transformer))  # type: ignore[attr-defined]
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    sizes = {k: v for k, v in arguments.items() if k in SIZES and isinstance(v, int)}
    try:
        with replaced(pipe, listener):
            pipe(**arguments)  # type: ignore[operator]
    except (ValueError, TypeError, RuntimeError) as error:
        raise ProbeFailed(type(pipe).__name__, sizes, error) from error
    finally:
        pipe._progress_bar_config = bar  # type: ignore[attr-defined]
    if listener.call is None:
        raise ProbeFailed(type(pipe).__name__, sizes, None)
    return listener.call


DRIVER = ByChunkDriver()
