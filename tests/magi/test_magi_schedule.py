"""Laws of the schedule: every chunk is done once, in order, within the window, and sees only what is there."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mccompile.models.magi.config import MagiSettings
from mccompile.models.magi.schedule import MagiCall, magi_schedule, oldest_needed, step_intervals, time_table


@st.composite
def runs(draw: st.DrawFn) -> tuple[MagiSettings, int, int, tuple[MagiCall, ...]]:
    window = draw(st.sampled_from([1, 2, 4]))
    ranges = draw(st.sampled_from([(5, 4, 3, 2), (3, 1), (2,), ()]))
    settings = MagiSettings(
        num_inference_steps=draw(st.sampled_from([8, 12, 16])),
        window_size=window,
        noise2clean_kvrange=ranges,
        clean_chunk_kvrange=draw(st.sampled_from([1, 2, -1])),
        distilled=draw(st.booleans()),
    )
    chunks = draw(st.integers(1, 9))
    prefix = draw(st.integers(0, chunks - 1))
    return settings, chunks, prefix, magi_schedule(settings, chunks, prefix)


@given(runs())
def test_every_chunk_takes_every_step_once_and_in_order(run: tuple) -> None:
    settings, chunks, prefix, calls = run
    steps: dict[int, list[int]] = {c: [] for c in range(prefix, chunks)}
    times: dict[int, float] = {}
    for call in calls:
        for chunk, step, time, after in zip(
            call.active_chunks, call.step_indices, call.active_times, call.next_times, strict=True
        ):
            steps[chunk].append(step)
            assert times.get(chunk, 0.0) == time
            times[chunk] = after
    assert all(done == list(range(settings.num_inference_steps)) for done in steps.values())
    assert [c.finished_chunk for c in calls if c.finished_chunk is not None] == list(range(prefix, chunks))


@given(runs())
def test_chunks_in_flight_fit_the_window_and_are_consecutive(run: tuple) -> None:
    settings, _, _, calls = run
    for call in calls:
        assert len(call.active_chunks) <= settings.window_size
        assert call.chunks == tuple(range(call.slice_point, call.slice_point + len(call.chunks)))
        assert list(call.active_times) == sorted(call.active_times, reverse=True)


@given(runs())
def test_each_chunk_but_the_last_is_cleaned_once_before_it_is_read(run: tuple) -> None:
    _, chunks, _, calls = run
    cached: list[int] = []
    for call in calls:
        for first, end in call.kv_ranges:
            assert set(range(first, min(end, call.slice_point))) <= set(cached)
        cached += call.clean_chunks
    assert Counter(cached) == Counter(range(chunks - 1))


@given(runs())
def test_a_chunk_sees_itself_and_nothing_later(run: tuple) -> None:
    _, _, _, calls = run
    for call in calls:
        for chunk, (first, end) in zip(call.chunks, call.kv_ranges, strict=True):
            assert first <= chunk
            assert end == chunk + 1


@given(runs())
def test_nothing_is_needed_that_was_forgotten(run: tuple) -> None:
    _, _, _, calls = run
    oldest = oldest_needed(calls)
    assert list(oldest) == sorted(oldest)
    for i, call in enumerate(calls):
        assert oldest[i] == min(later.first_key_chunk for later in calls[i:])
        assert oldest[i] <= call.first_key_chunk


def test_the_past_can_reach_further_back_again() -> None:
    """Why a call's own first chunk is not what may be forgotten."""
    calls = magi_schedule(MagiSettings(num_inference_steps=8, window_size=1), 6)
    firsts = [call.first_key_chunk for call in calls]
    assert firsts != sorted(firsts)


@pytest.mark.parametrize("steps", [8, 12, 16, 32, 64])
def test_times_reach_from_noise_to_clean(steps: int) -> None:
    table = time_table(steps)
    assert len(table) == steps + 1
    assert table[0] == 0.0
    assert table[-1] == pytest.approx(1.0, abs=1e-6)
    assert list(table) == sorted(set(table))
    assert len(step_intervals(steps)) == steps


@pytest.mark.parametrize("prefix", [-1, 3, 4])
def test_a_prefix_must_leave_something_to_do(prefix: int) -> None:
    with pytest.raises(ValueError, match="at least one chunk"):
        magi_schedule(MagiSettings(), 3, prefix)
