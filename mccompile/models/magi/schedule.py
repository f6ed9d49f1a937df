"""Which chunks run when, at which times, and which chunks they may see. torch-free.

Times are float32 values held in Python floats, as the official code computes them: 0 is noise, 1 is clean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mccompile.models.magi.config import MagiSettings, TimeTransform

# Attention window of a prefix when the settings name none.
_PREFIX_RANGE = 8


@dataclass(frozen=True, slots=True)
class MagiCall:
    """One evaluation of the velocity. Chunk numbers are absolute, from the start of the video."""

    index: int  # position in the run; the prefix call, if any, is 0
    stage: int  # stages begin when a chunk enters or leaves; -1 for the prefix call
    step: int  # calls since the stage began
    slice_point: int  # first chunk of the call = number of chunks whose K/V come from the cache
    clean_chunks: tuple[int, ...]  # leading chunks that are run for their K/V alone
    active_chunks: tuple[int, ...]  # chunks that are integrated
    step_indices: tuple[int, ...]  # per active chunk: how many steps it has done
    times: tuple[float, ...]  # per chunk of the call, clean ones first
    next_times: tuple[float, ...]  # per active chunk: its time after the call
    kv_ranges: tuple[tuple[int, int], ...]  # per chunk of the call: [first, end) of the chunks it attends to
    interval: int  # of the distilled 12-step mode; otherwise 1
    nearly_clean: bool  # the first active chunk is past the threshold
    finished_chunk: int | None  # the active chunk whose last step this is

    @property
    def chunks(self) -> tuple[int, ...]:
        """All chunks of the call, clean ones first."""
        return self.clean_chunks + self.active_chunks

    @property
    def clean_chunk(self) -> int | None:
        """The clean chunk before the active ones, or None; the prefix call has no such single chunk."""
        return self.clean_chunks[-1] if self.clean_chunks and self.active_chunks else None

    @property
    def is_prefix(self) -> bool:
        return not self.active_chunks

    @property
    def active_times(self) -> tuple[float, ...]:
        return self.times[len(self.clean_chunks) :]

    @property
    def first_key_chunk(self) -> int:
        """The earliest chunk that any chunk of the call attends to."""
        return min(start for start, _ in self.kv_ranges)


def _kept_steps(shortcut_mode: str) -> tuple[int, int]:
    """Sixteenths that the 12-step mode keeps of each quarter, besides its start."""
    return (2, 3) if shortcut_mode == "8,16,16" else (1, 2)


def time_table(
    num_steps: int, transform: TimeTransform = "sd3", shortcut_mode: str = "8,16,16"
) -> tuple[float, ...]:
    """num_steps + 1 times from 0 (noise) to 1 (clean), in float32."""
    if num_steps == 12:
        sixteenths = (0, *_kept_steps(shortcut_mode))
        u = np.array([k / 16 + a for a in (0, 0.25, 0.5, 0.75, 1.0) for k in sixteenths][:13], np.float32)
    else:
        # As torch.linspace: from both ends inwards.
        step, index = np.float32(1) / np.float32(num_steps), np.arange(num_steps + 1, dtype=np.float32)
        lower = index < (num_steps + 1) // 2
        u = np.where(lower, step * index, np.float32(1) - step * (np.float32(num_steps) - index)).astype(np.float32)
    if transform != "identity":
        u = u * u
    if transform == "sd3":
        third = 1.0 / 3.0
        u = (u * np.float32(third)) / (np.float32(1) + np.float32(third - 1) * u)
    return tuple(float(x) for x in u)


def step_intervals(num_steps: int, shortcut_mode: str = "8,16,16") -> tuple[int, ...]:
    """Per step: its length in sixteenths of a quarter, in the 12-step mode; 1 otherwise."""
    if num_steps != 12:
        return (1,) * num_steps
    return ((2, 1, 1) if shortcut_mode == "8,16,16" else (1, 1, 2)) * 4


@dataclass(frozen=True, slots=True)
class Stage:
    """Chunks [first, end) are in flight; their slots [slot_first, slot_end) count quarters of the run done."""

    first: int
    end: int
    slot_first: int
    slot_end: int


def stages(num_chunks: int, window: int, prefix_chunks: int = 0) -> tuple[Stage, ...]:
    """The stages of a run: a chunk enters or leaves at each."""
    return tuple(
        Stage(
            first=max(prefix_chunks, i - window + 1),
            end=min(num_chunks, i + 1),
            slot_first=max(0, i - num_chunks + 1),
            slot_end=min(window, i - prefix_chunks + 1),
        )
        for i in range(prefix_chunks, num_chunks + window - 1)
    )


def _active_start(settings: MagiSettings, end: int, step_index: int) -> int:
    ranges = settings.noise2clean_kvrange
    if not ranges:
        return 0
    return max(0, end - ranges[step_index // (settings.num_inference_steps // len(ranges))])


def _clean_start(settings: MagiSettings, end: int) -> int:
    if not settings.noise2clean_kvrange:
        return 0
    reach = settings.clean_chunk_kvrange
    return max(0, end - (settings.noise2clean_kvrange[-1] if reach == -1 else reach))


def _prefix_call(settings: MagiSettings, prefix_chunks: int, clean_t: float) -> MagiCall:
    reach = settings.clean_chunk_kvrange
    if reach == -1:
        reach = settings.noise2clean_kvrange[-1] if settings.noise2clean_kvrange else _PREFIX_RANGE
    chunks = tuple(range(prefix_chunks))
    return MagiCall(
        index=0,
        stage=-1,
        step=0,
        slice_point=0,
        clean_chunks=chunks,
        active_chunks=(),
        step_indices=(),
        times=(clean_t,) * prefix_chunks,
        next_times=(),
        kv_ranges=tuple((max(0, c + 1 - reach), c + 1) for c in chunks),
        interval=1,
        nearly_clean=False,
        finished_chunk=None,
    )


def magi_schedule(settings: MagiSettings, num_chunks: int, prefix_chunks: int = 0) -> tuple[MagiCall, ...]:
    """Every call of a run, in order: the prefix call first when there are full prefix chunks.

    Raises ValueError when the prefix leaves nothing to generate.
    """
    if not 0 <= prefix_chunks < num_chunks:
        raise ValueError(f"{prefix_chunks} prefix chunks of {num_chunks}: at least one chunk must be generated")
    clean_t = float(np.float32(settings.clean_t))
    calls = [_prefix_call(settings, prefix_chunks, clean_t)] if prefix_chunks else []
    for number, stage in enumerate(stages(num_chunks, settings.window_size, prefix_chunks)):
        for step in range(settings.num_inference_steps // settings.window_size):
            calls.append(_call(settings, len(calls), number, stage, step, prefix_chunks, clean_t))
    return tuple(calls)


def oldest_needed(calls: tuple[MagiCall, ...]) -> tuple[int, ...]:
    """Per call: the earliest chunk that it or any later call attends to.

    Not that call's own first chunk: a chunk sees less of the past the cleaner it is, so a newer one reaches further.
    """
    oldest = [call.first_key_chunk for call in calls]
    for i in range(len(calls) - 2, -1, -1):
        oldest[i] = min(oldest[i], oldest[i + 1])
    return tuple(oldest)


def _call(
    settings: MagiSettings, index: int, number: int, stage: Stage, step: int, prefix_chunks: int, clean_t: float
) -> MagiCall:
    stage_length = settings.num_inference_steps // settings.window_size
    table = time_table(settings.num_inference_steps, settings.time_transform, settings.shortcut_mode)
    active = tuple(range(stage.first, stage.end))
    clean = (stage.first - 1,) if stage.first > prefix_chunks and step == 0 else ()
    steps = tuple((stage.slot_end - 1 - j) * stage_length + step for j in range(len(active)))
    times = tuple(table[s] for s in steps)
    ranges = [(_clean_start(settings, c + 1), c + 1) for c in clean]
    ranges += [(_active_start(settings, c + 1, s), c + 1) for c, s in zip(active, steps, strict=True)]
    return MagiCall(
        index=index,
        stage=number,
        step=step,
        slice_point=(clean + active)[0],
        clean_chunks=clean,
        active_chunks=active,
        step_indices=steps,
        times=(clean_t,) * len(clean) + times,
        next_times=tuple(table[s + 1] for s in steps),
        kv_ranges=tuple(ranges),
        interval=step_intervals(settings.num_inference_steps, settings.shortcut_mode)[step],
        # In double precision, as the official code compares: float32(0.3) > 0.3 is true.
        nearly_clean=times[0] > settings.nearly_clean_threshold,
        finished_chunk=active[0] if steps[0] == settings.num_inference_steps - 1 else None,
    )
