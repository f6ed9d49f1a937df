"""The scheduler's step for all frames at once gives what the stock steps give, bit for bit, and leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from mccompile.pipelines import frame_steps
from mccompile.pipelines.frame_steps import FrameSteps, refused, stacked
from mccompile.pipelines.kinds.forcing import ForcingClock
from tests.runtime.conftest import Tiny, embeds, pipeline

STEPS = 6


@pytest.fixture(scope="module")
def runs() -> Tiny:
    return Tiny(pipeline(), embeds(), None)


class Counted:
    """How often a frame took the stock step, and how many frames each step of ours was for."""

    def __init__(self) -> None:
        self.stock, self.together = 0, list[int]()


@contextmanager
def stepping(pipe: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted, clock = Counted(), ForcingClock(pipe)
    stock, together = UniPCMultistepScheduler.step, FrameSteps._together

    def step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        counted.stock += 1
        return stock(self, *args, **kwargs)

    def all_at_once(self, run, *more):  # type: ignore[no-untyped-def]
        counted.together.append(len(run))
        return together(self, run, *more)

    with monkeypatch.context() as patch:
        patch.setattr(UniPCMultistepScheduler, "step", step)
        patch.setattr(FrameSteps, "_together", all_at_once)
        clock.attach(lambda: None)
        try:
            yield counted
        finally:
            clock.detach()


SCHEDULES = {
    "frames at the same step": {"ar_step": 0},
    "chunks that lag": {"ar_step": 2, "causal_block_size": 2},
    "every frame alone": {"ar_step": 1, "causal_block_size": 1},
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("changes", [{}, {"solver_order": 1}, {"disable_corrector": [1, 2]}])
def test_equals_the_stock_steps(
    runs: Tiny, name: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"num_frames": 21, "num_inference_steps": STEPS, **SCHEDULES[name]}
    before = runs.pipe.scheduler
    runs.pipe.scheduler = UniPCMultistepScheduler.from_config(before.config, **changes)
    try:
        wanted = runs.run(**more)
        with stepping(runs.pipe, monkeypatch) as counted:
            found = runs.run(**more)
        assert torch.equal(found, wanted)
        assert counted.stock == 0
        assert sum(counted.together) == 6 * STEPS  # latent frames
        assert max(counted.together) == {"frames at the same step": 6, "chunks that lag": 2}.get(name, 1)
        assert "__deepcopy__" not in vars(runs.pipe.scheduler)
    finally:
        runs.pipe.scheduler = before


def test_latents_that_a_callback_changes_are_seen(runs: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(pipe: object, step: int, timestep: object, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if step == 2:
            given["latents"][:, :, 1] *= 0.5
        return given if step != 3 else {"latents": given["latents"].clone()}

    more = {"num_frames": 21, "num_inference_steps": STEPS, "ar_step": 0, "callback_on_step_end": change}
    wanted = runs.run(**more)
    with stepping(runs.pipe, monkeypatch) as counted:
        assert torch.equal(runs.run(**more), wanted)
    assert counted.stock == 0


def test_latents_that_change_between_the_turns_of_two_frames_are_seen(
    runs: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed for a frame is not used if its latents were written to meanwhile."""
    commit = frame_steps._commit

    def meddle(own, ready, timestep, sample):  # type: ignore[no-untyped-def]
        commit(own, ready, timestep, sample)
        if own._frame == 2:
            ready.latents.mul_(1.0)

    more = {"num_frames": 21, "num_inference_steps": STEPS, "ar_step": 0}
    wanted = runs.run(**more)
    monkeypatch.setattr(frame_steps, "_commit", meddle)
    with stepping(runs.pipe, monkeypatch) as counted:
        assert torch.equal(runs.run(**more), wanted)
    assert counted.stock > 0


def test_other_schedulers_keep_their_own_step(runs: Tiny) -> None:
    stock = runs.pipe.scheduler
    assert refused(stock) == ""
    assert refused(UniPCMultistepScheduler.from_config(stock.config, solver_order=3)) == "its solver_order is above 2"
    assert "solver_type is bh1" in refused(UniPCMultistepScheduler.from_config(stock.config, solver_type="bh1"))
    assert "prediction_type" in refused(UniPCMultistepScheduler())
    assert "FlowMatchEulerDiscreteScheduler" in refused(FlowMatchEulerDiscreteScheduler())


def test_neighbouring_frames_are_not_copied() -> None:
    whole = torch.arange(24.0).reshape(1, 2, 3, 2, 2).clone()
    frames = [whole.select(2, i) for i in range(3)]
    found = stacked(frames[1:])
    assert found.data_ptr() == frames[1].data_ptr()
    assert torch.equal(found, whole[:, :, 1:])
    assert torch.equal(stacked([frames[2], frames[0]]), whole[:, :, [2, 0]])
