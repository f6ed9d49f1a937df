"""Which step and which branch a call is: from the pipeline's own schedule, never from an equal timestep or a count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    WanVideoToVideoPipeline,
)

from mccompile.pipelines.branches import MOST, BranchNames
from mccompile.pipelines.errors import NoSchedule
from mccompile.pipelines.grids import as_told, forms_told
from mccompile.pipelines.steps import StepClock
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Told, Untold
from mccompile.runtime.errors import NoClock, UnknownStep, UnknownTimesteps
from tests.pipelines.conftest import Wan, actions, distance, generate, steps, unipc

WARM_UP = 3  # steps of fixed_interval, which then computes every third
EVERY_THIRD = "fff" + "frr" * 40


def as_scheduled(count: int) -> str:
    return EVERY_THIRD[:count]


def start() -> torch.Tensor:
    return torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(5))


SCHEDULERS = {
    "euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "heun": FlowMatchHeunDiscreteScheduler(shift=3.0),  # every timestep twice
    "unipc_equal": unipc(12.0),  # two timesteps are rounded to the same number
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_call_is_the_next_step(tiny_wan: Wan, name: str) -> None:
    pipe = tiny_wan.pipe(scheduler=SCHEDULERS[name])
    compiled = tiny_wan.compile(pipe)
    generate(pipe, num_inference_steps=100 if name == "unipc_equal" else 8, guidance_scale=1.0)
    calls = len(pipe.scheduler.timesteps)
    if name in ("heun", "unipc_equal"):
        assert len(set(pipe.scheduler.timesteps.tolist())) < calls
    assert steps(compiled) == list(range(calls))
    assert actions(compiled) == as_scheduled(calls)


@pytest.mark.parametrize("strength", [1.0, 0.75, 0.5])
def test_a_start_in_the_middle_counts_from_its_first_step(tiny_wan: Wan, strength: float) -> None:
    """Warm-up is of the steps that run, and branches without a name do not share what is kept."""
    pipe = tiny_wan.pipe(WanVideoToVideoPipeline)
    compiled = tiny_wan.compile(pipe)
    generate(pipe, latents=start(), strength=strength, num_inference_steps=12)
    left = int(12 * strength)
    assert {e.branch for e in compiled.events} == {"cond", "cond:2"}
    for branch in ("cond", "cond:2"):
        assert actions(compiled, branch) == as_scheduled(left)
        assert steps(compiled, branch) == list(range(12 - left, 12))


def test_unnamed_branches_give_what_named_ones_do(tiny_wan: Wan) -> None:
    """The same generation by a pipeline that names its branches and by one that does not."""
    named, unnamed = tiny_wan.pipe(), tiny_wan.pipe(WanVideoToVideoPipeline)
    videos = []
    for pipe, more in ((named, {"num_frames": 9}), (unnamed, {"strength": 1.0})):
        compiled = tiny_wan.compile(pipe)
        videos.append(generate(pipe, latents=start(), **more))
        compiled.undo()
    assert distance(videos[0], videos[1]) < 1e-5


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", ["unipc", "heun"])
def test_folded_and_unfolded_decide_alike(tiny_wan: Wan, name: str, strength: float, threshold: float) -> None:
    """Law 5 where the schedule starts in the middle or repeats timesteps."""
    found = []
    for fold in (True, False):
        scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0) if name == "heun" else unipc()
        pipe = tiny_wan.pipe(WanVideoToVideoPipeline, scheduler=scheduler)
        compiled = tiny_wan.compile(pipe, "teacache", fold=fold, threshold=threshold)
        generate(pipe, latents=start(), strength=strength)
        found.append([(e.branch, e.row, e.step, e.action) for e in compiled.events])
        compiled.undo()
    assert found[0] == found[1]


def test_a_call_outside_of_the_pipelines_own_is_refused(tiny_wan: Wan) -> None:
    class Stop(Exception):
        pass

    def stopping(pipe: object, index: int, timestep: object, kept: dict[str, object]) -> dict[str, object]:
        if index == 4:
            raise Stop
        return kept

    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe)
    whole = generate(pipe)
    with pytest.raises(Stop):
        generate(pipe, callback_on_step_end=stopping)
    call = {"hidden_states": start(), "timestep": torch.tensor([321]), "encoder_hidden_states": torch.zeros(1, 7, 16)}
    with pytest.raises(NoClock):
        compiled(**call)
    other = type(tiny_wan.pipe())(**pipe.components)
    other.set_progress_bar_config(disable=True)
    with pytest.raises(NoClock):
        generate(other)
    compiled.events.clear()
    assert torch.equal(generate(pipe), whole)
    assert steps(compiled) == list(range(8))


def test_branches_keep_their_names_where_guidance_is_left_out() -> None:
    one, two, image = (torch.zeros(1) for _ in range(3))
    found = BranchNames()
    calls = [(0, two), (0, one), (1, two), (1, one), (2, one), (3, one), (4, two), (4, one)]
    names = [found.name("cond", row, {"text": text, "image": image, "x": torch.zeros(2)}) for row, text in calls]
    assert names == ["cond", "cond:2", "cond", "cond:2", "cond:2", "cond:2", "cond", "cond:2"]


def test_so_many_calls_of_a_step_are_no_branches() -> None:
    found = BranchNames()
    for _ in range(MOST):
        found.name("cond", 0, {})
    with pytest.raises(UnknownStep, match="16 calls of the step"):
        found.name("cond", 0, {})


class Loop:
    """The smallest pipeline: a loop over the scheduler's timesteps, of which it tells a clock."""

    def __init__(self, scheduler: object, tell: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.scheduler, self.tell = scheduler, tell
        self.clock = StepClock(self)
        self.clock.attach(lambda: None)

    def __call__(self, count: int) -> list[int]:
        self.scheduler.set_timesteps(count)  # type: ignore[attr-defined]
        times = self.scheduler.timesteps  # type: ignore[attr-defined]
        return [self.clock.moment("cond", {"timestep": self.tell(t)}).row for t in times]


def test_a_scheduler_that_does_not_say_its_step_is_read_by_its_timesteps() -> None:
    """A timestep that is a view of the scheduler's says its row; a copy of it says nothing, and nothing is guessed."""
    assert not isinstance(getattr(DDIMScheduler, "step_index", None), property)
    assert Loop(DDIMScheduler(), lambda t: t.expand(2))(6) == list(range(6))
    with pytest.raises(UnknownStep, match="DDIMScheduler does not say"):
        Loop(DDIMScheduler(), lambda t: t.clone())(6)


def test_a_pipeline_without_a_schedule_is_refused_at_compile_time() -> None:
    with pytest.raises(NoSchedule, match="MC0709"):
        Loop(None, lambda t: t)


GRID = Grid(3, (1000.0, 900.0, 500.0), (1.0, 0.9, 0.5))


@pytest.mark.parametrize(
    ("step", "told", "forms"),
    [
        (0, 1000.0, [GRID.timesteps]),
        (1, 0.9, [(1.0, 0.9, 0.5), (1.0, 0.9, 0.5)]),
        (1, 100.0, [(0.0, 100.0, 500.0)]),
        (2, 500.0, [GRID.timesteps, (0.0, 100.0, 500.0)]),
        (1, 0.1, [(0.0, 0.1, 0.5)] * 2),
    ],
)
def test_the_ways_to_tell_a_timestep(step: int, told: float, forms: list[tuple[float, ...]]) -> None:
    found = forms_told(GRID, step, torch.full((2,), told))
    assert not isinstance(found, Untold)
    assert [pytest.approx(form) for form in found] == forms
    assert as_told(GRID, found) == (None if forms[0] == GRID.timesteps else Told(found[0]))


@pytest.mark.parametrize("told", [torch.tensor([0.0, 900.0]), torch.tensor([777.0]), None])
def test_timesteps_that_tell_nothing_of_the_others(told: torch.Tensor | None) -> None:
    assert isinstance(forms_told(GRID, 1, told), Untold)


def test_a_plan_that_needs_unknown_timesteps_is_refused(tiny_wan: Wan) -> None:
    """The first step gives the tokens of one call different timesteps: nothing says what others will be given."""
    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe, "teacache")
    other = {"timestep": torch.tensor([77])}
    compiled.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **other}), with_kwargs=True)
    with pytest.raises(UnknownTimesteps, match=r"teacache.*given 77"):
        generate(pipe)
