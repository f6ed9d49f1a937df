"""Pipelines that run a window of chunks and say which (`current_call`, `current_chunks`): MAGI-1.

Their calls differ in the number of chunks, and a first call does not show this. So a short run at two small sizes is
recorded in full, with the real transformer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from mccompile.capture.shallow import is_hollow
from mccompile.models.magi.cache import no_keys
from mccompile.models.magi.predict import UNSEEN_ROWS
from mccompile.models.magi.schedule import MagiCall, time_table
from mccompile.models.magi.transformer import KeyValues, MagiTransformer3DModel
from mccompile.pipelines.driver import Driver
from mccompile.pipelines.errors import ProbeFailed
from mccompile.pipelines.probe import SIZES, Declared, ExampleCall, replaced
from mccompile.pipelines.watch import Watch
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.errors import NoClock
from mccompile.runtime.stand_in import StandIn, unwrapped

TOKENS = ((3, 7), (5, 11))  # rows and columns of tokens, all different
UNSEEN = ((4, 6), (6, 4))  # further sizes, for runs that prove something of a captured model
MORE_TEXT = 64  # padding that tells the length of the text from a constant
_requests = itertools.count()


class ChunkPipeline(Protocol):
    """What the clock asks of a pipeline: the call under way, the chunks of the pass under way, the generation."""

    @property
    def current_call(self) -> MagiCall | None: ...
    @property
    def current_chunks(self) -> tuple[int, ...]: ...
    @property
    def current_run(self) -> object | None: ...


@dataclass(frozen=True, slots=True)
class _Request:
    """A generation and its number; the run is held so that no other can be taken for it."""

    run: object
    number: int


class ChunkClock:
    """Every chunk of a call at its own step; a clean chunk is finished, a second run of one is its copy."""

    def __init__(self, pipe: ChunkPipeline) -> None:
        self._pipe = pipe
        self._request = _Request(None, -1)
        self._watch: Watch | None = None

    def attach(self, ended: Callable[[], None]) -> None:
        """Watches the pipeline's calls."""
        self._watch = Watch(self._pipe, ended)

    def detach(self) -> None:
        """Watches no longer."""
        if self._watch is not None:
            self._watch.release()
        self._watch = None

    def request(self) -> int:
        """Number of the generation under way. Raises NoClock (MC0601) outside of one."""
        run = self._pipe.current_run
        if run is None:
            raise NoClock
        if run is not self._request.run:
            self._request = _Request(run, next(_requests))
        return self._request.number

    def moment(self, branch: str, inputs: Mapping[str, object], place: int | None = None) -> Moment:
        """The call under way; a pass over one chunk alone is a branch of its own. Raises NoClock (MC0601)."""
        call, run, number = self._pipe.current_call, self._pipe.current_run, self.request()
        if call is None:
            raise NoClock
        chunks = self._pipe.current_chunks
        own = f"{branch}:{chunks[0]}" if branch == "uncond" else branch
        # One place more than there are chunks: a copy lies after the last one.
        return Moment(
            number, call.index, own, grid_of_run(run), chunk_times(call, chunks), run.chunks + 1,  # type: ignore[attr-defined]
            visited=self._watch is not None and self._watch.visited,
        )  # fmt: skip


def grid_of_run(run: object) -> Grid:
    """The steps of a chunk: MAGI-1's times run from 0 (noise) to 1 (clean), so sigma is 1 - time."""
    settings = run.settings  # type: ignore[attr-defined]
    table = time_table(settings.num_inference_steps, settings.time_transform, settings.shortcut_mode)[:-1]
    return Grid(len(table), table, tuple(1 - t for t in table))


def chunk_times(call: MagiCall, chunks: tuple[int, ...]) -> tuple[ChunkTime, ...]:
    """The chunks of one pass, in the order of its tokens."""
    steps = dict(zip(call.active_chunks, call.step_indices, strict=True))
    times: list[ChunkTime] = []
    for place, chunk in enumerate(chunks):
        if chunk in chunks[:place]:
            times.append(ChunkTime(chunks[place - 1] + 1, "active", steps[chunk], copy_of=chunk))
        elif chunk in steps:
            times.append(ChunkTime(chunk, "active", steps[chunk]))
        else:
            times.append(ChunkTime(chunk, "finished", 0, clean=True))
    return tuple(times)


class _Listener(StandIn):
    """Runs the transformer and keeps its calls. One without weights gives zeros."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.calls: list[ExampleCall] = []
        self.set_up()

    def forward(self, *args: object, **kwargs: object) -> object:
        call = self.arguments_of(*args, **kwargs)
        self.calls.append(call)
        return _nothing(self.model, call) if is_hollow(self.model) else self.model(**call)


def _nothing(model: nn.Module, call: ExampleCall) -> tuple[torch.Tensor, KeyValues]:
    """Zeros of the sizes that a model without weights would give."""
    latents, chunks = call["hidden_states"], _chunks(call)
    assert isinstance(model, MagiTransformer3DModel)
    assert isinstance(latents, torch.Tensor)
    tokens = latents[0, 0].numel() // model.shape.patch_size**2
    rows = tokens // chunks * int(str(call["return_kv_chunks"]))
    return torch.zeros_like(latents), no_keys(model.shape, len(latents), latents, model.compute_dtype, rows)


def record_window_calls(pipe: object, arguments: Mapping[str, object]) -> tuple[ExampleCall, ExampleCall]:
    """The transformer's keyword arguments at two small sizes, with different numbers of chunks and of cached keys.

    arguments: further arguments of the pipeline's call. Raises ProbeFailed.
    """
    settings = pipe.scheduler.settings  # type: ignore[attr-defined]
    most = max(settings.window_size, 2)
    runs = [_record(pipe, chunks, size, arguments) for chunks, size in zip((most, most + 2), TOKENS, strict=True)]
    first = max(runs[0], key=_preference)
    others = [c for c in runs[1] if _chunks(c) != _chunks(first)] or runs[1]
    second = max(others, key=_preference)
    if first["encoder_hidden_states"].shape[2] == second["encoder_hidden_states"].shape[2]:  # type: ignore[attr-defined]
        second = _longer_text(second)
    return first, second


def _chunks(call: ExampleCall) -> int:
    return call["timestep"].shape[1]  # type: ignore[attr-defined]


def _preference(call: ExampleCall) -> tuple[bool, int]:
    """Calls that read the keys of a chunk before others, then those of most chunks."""
    return call["cached_key_values"][0][0].shape[1] > UNSEEN_ROWS, _chunks(call)  # type: ignore[index]


def _longer_text(call: ExampleCall) -> ExampleCall:
    text, mask = call["encoder_hidden_states"], call["encoder_attention_mask"]
    assert isinstance(text, torch.Tensor)
    assert isinstance(mask, torch.Tensor)
    more = {
        "encoder_hidden_states": F.pad(text, (0, 0, 0, MORE_TEXT)),
        "encoder_attention_mask": F.pad(mask, (0, MORE_TEXT)),
    }
    return {**call, **more}


def _record(pipe: object, chunks: int, size: tuple[int, int], arguments: Mapping[str, object]) -> list[ExampleCall]:
    """Every call of a run of so many chunks, as one that asks for no keys."""
    given = _arguments_at(pipe, chunks, size, arguments)
    listener = _Listener(unwrapped(pipe.transformer))  # type: ignore[attr-defined]
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    try:
        with replaced(pipe, listener):
            pipe(**given)  # type: ignore[operator]
    except (ValueError, TypeError, RuntimeError) as error:
        sizes = {k: v for k, v in given.items() if k in _SIZED and isinstance(v, int)}
        raise ProbeFailed(type(pipe).__name__, sizes, error) from error
    finally:
        pipe._progress_bar_config = bar  # type: ignore[attr-defined]
    return [{**call, "return_kv_chunks": 0} for call in listener.calls]


_SIZED = ("num_frames", "height", "width", "num_inference_steps")


def _arguments_at(
    pipe: object, chunks: int, size: tuple[int, int], arguments: Mapping[str, object]
) -> dict[str, object]:
    """The arguments of a short run of so many chunks."""
    settings, patch = pipe.scheduler.settings, pipe.transformer.config.patch_size  # type: ignore[attr-defined]
    # Two steps in each stage: in the second of them a chunk that has just left is read from the cache.
    steps = 2 * math.lcm(settings.window_size, max(1, len(settings.noise2clean_kvrange)))
    height, width = (8 * patch * n for n in size)
    frames = chunks * settings.chunk_width * settings.temporal_factor
    wanted = dict(zip(_SIZED, (frames, height, width, steps), strict=True))
    text = {} if "prompt_embeds" in arguments else {"prompt": "a video"}
    return {**text, **arguments, **wanted, "output_type": "latent"}


class WindowDriver(Driver):
    """Pipelines that tell which chunks their calls hold."""

    def fits(self, pipe: object) -> bool:
        return isinstance(getattr(type(pipe), "current_call", None), property)

    def clock(self, pipe: object) -> ChunkClock:
        return ChunkClock(pipe)  # type: ignore[arg-type]

    def record(
        self, pipe: object, arguments: Mapping[str, object], larger: bool = False
    ) -> tuple[ExampleCall, ExampleCall]:
        return record_window_calls(pipe, {k: v for k, v in arguments.items() if k not in SIZES})

    def small_runs(self, pipe: object, arguments: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
        """Runs at two sizes that the recorded ones do not have; their steps are the fewest that end every stage."""
        most = max(pipe.scheduler.settings.window_size, 2)  # type: ignore[attr-defined]
        one, two = (_arguments_at(pipe, n, size, arguments) for n, size in zip((most, most + 1), UNSEEN, strict=True))
        return one, two

    def declared(self, pipe: object, arguments: Mapping[str, object]) -> Declared:
        """No call of its own: the larger example stands for it, for calls of a run differ in their chunks."""
        return Declared(None, len(pipe.guidance_passes))  # type: ignore[attr-defined]


DRIVER = WindowDriver()
