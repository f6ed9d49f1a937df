"""What is kept is of the step before, of one size and of one prompt; else a call is computed afresh, and says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from diffusers import WanTransformer3DModel

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime import runner
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.step import Steps, run

STEPS = 9
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS))
GRID = Grid(STEPS, tuple(1000 * s for s in SIGMAS), SIGMAS)
STEP = """policy whole {
  phase all { compute every 9 steps }
  layers blocks[*] { keep residual }
}
"""
TOKEN = """policy tokens {
  signal moved = rel_l1(latent, over = token)
  phase first for 1 steps { compute }
  phase rest { reuse token while accumulate(moved) < 100 }
  layers blocks[*] { keep residual }
}
"""
Call = dict[str, object]


def call(row: int, text: int = 0, frames: int = 3, height: int = 8, width: int = 8, length: int = 7) -> Call:
    latents, words = (torch.Generator().manual_seed(s) for s in (row, 100 + text))
    return {
        "hidden_states": torch.randn(1, 4, frames, height, width, generator=latents),
        "timestep": torch.tensor([GRID.timesteps[row % STEPS]]),
        "encoder_hidden_states": torch.randn(1, length, 16, generator=words),
        "return_dict": False,
    }


class Runs:
    """A compiled model that is called row by row."""

    def __init__(self, model: WanTransformer3DModel, prepared: api.Prepared, policy: str, fold: bool = True) -> None:
        self.model = model
        self.clock = Timeline("request", GRID, steps_in_order(GRID))
        source = Source("p.policy", policy)
        self.compiled: CompiledModel = api.compile(
            model, source, backend="eager", captured=prepared, clock=self.clock, fold=fold
        )

    def __call__(self, row: int, given: Call) -> tuple[torch.Tensor, str]:
        """The output at a row, and what was done why."""
        self.clock.row = row
        (out,) = self.compiled(**given)
        event = self.compiled.events[-1]
        return out, f"{event.action}: {event.why}"

    def own(self, given: Call) -> torch.Tensor:
        return self.model(**given)[0]


CHANGES: Mapping[str, tuple[Callable[[int], Call], int, str]] = {
    "a gap": (lambda row: call(row), 6, "full: last called in row 3"),
    "a row again": (lambda row: call(row), 3, "full: last called in row 3"),
    "another prompt": (lambda row: call(row, text=1), 4, "full: another prompt"),
    "a longer prompt": (lambda row: call(row, text=1, length=9), 4, "full: another prompt"),
    "another size": (lambda row: call(row, height=12, width=10), 4, "full: another size"),
    "height and width exchanged": (lambda row: call(row, height=4, width=16), 4, "full: another size"),
    "more frames": (lambda row: call(row, frames=5), 4, "full: another size"),
}


@pytest.mark.parametrize("policy", [STEP, TOKEN], ids=["step", "token"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_of_this_call_is_computed_afresh(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared, change: str, policy: str
) -> None:
    """The result is the model's own, the trace says why, and the next step reuses again; folded or not."""
    made, row, why = CHANGES[change]
    for fold in (True, False):
        runs = Runs(small_wan, captured_wan, policy, fold)
        said = [runs(r, call(r))[1] for r in range(4)]
        assert [s.split(":")[0] for s in said] == ["full", "reuse", "reuse", "reuse"]
        out, told = runs(row, made(row))
        assert told == why
        torch.testing.assert_close(out, runs.own(made(row)), rtol=0, atol=1e-5)
        assert runs(row + 1, made(row + 1))[1].startswith("reuse")


def test_a_gap_behind_the_very_first_step_is_one(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    for policy in (STEP, TOKEN):
        runs = Runs(small_wan, captured_wan, policy)
        runs(0, call(0))
        out, told = runs(4, call(4))
        assert told == "full: last called in row 0"
        torch.testing.assert_close(out, runs.own(call(4)), rtol=0, atol=1e-5)


def test_a_prompt_changed_in_place_is_another_prompt(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    runs = Runs(small_wan, captured_wan, STEP)
    text = call(0)["encoder_hidden_states"]
    assert isinstance(text, torch.Tensor)
    for row in range(3):
        runs(row, call(row) | {"encoder_hidden_states": text})
    text.mul_(2)
    given = call(3) | {"encoder_hidden_states": text}
    out, told = runs(3, given)
    assert told == "full: another prompt"
    torch.testing.assert_close(out, runs.own(given), rtol=0, atol=1e-5)


def test_an_equal_prompt_is_the_same(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Pipelines that embed the prompt anew at each step reuse all the same, in inference mode too."""
    for mode in (torch.no_grad, torch.inference_mode):
        runs = Runs(small_wan, captured_wan, STEP)
        with mode():
            assert [runs(r, call(r))[1].split(":")[0] for r in range(4)] == ["full", "reuse", "reuse", "reuse"]


def test_a_branch_that_begins_late_begins_by_computing(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    for policy in (STEP, TOKEN):
        runs = Runs(small_wan, captured_wan, policy)
        out, told = runs(5, call(5))
        assert told == "full: first called at step 5"
        torch.testing.assert_close(out, runs.own(call(5)), rtol=0, atol=1e-5)
        assert runs(6, call(6))[1].startswith("reuse")


@pytest.mark.parametrize("policy", [STEP, TOKEN], ids=["step", "token"])
def test_a_call_that_was_broken_off_is_made_again_afresh(
    policy: str, small_wan: WanTransformer3DModel, captured_wan: api.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error of memory in a loop of the user's own: its rows are half replaced, its accounts have grown."""
    runs = Runs(small_wan, captured_wan, policy)
    for row in range(3):
        runs(row, call(row))

    def raising(steps: Steps) -> None:
        run(steps)
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(runner, "run", raising)
        with pytest.raises(MemoryError):
            runs(3, call(3))
    got, why = runs(3, call(3))
    assert why == "full: a call was broken off"
    torch.testing.assert_close(got, runs.own(call(3)), rtol=0, atol=1e-5)
    assert runs(4, call(4))[1].startswith("reuse")
