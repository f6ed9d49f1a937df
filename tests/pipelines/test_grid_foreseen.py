"""The step grid that `explain` foresees is that of the run, whatever the pipeline gives its scheduler."""

from __future__ import annotations

import pytest
import torch

from mccompile.models.magi.errors import MagiConfigError
from mccompile.pipelines.finding import driver_for
from mccompile.pipelines.grids import grid_of
from mccompile.pipelines.kinds.windows import grid_of_run
from tests.magi.tiny import PROMPT, tiny_pipeline
from tests.pipeline_table import CASES

STEPS = 5
# The first two and Qwen-Image shift their sigmas by the size of the image, HunyuanVideo gives sigmas, Wan neither.
NAMES = ("FluxPipeline", "LTXPipeline", "HunyuanVideoPipeline", "CogVideoXPipeline", "QwenImagePipeline", "WanPipeline")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_that_of_a_run_at_the_same_size(name: str) -> None:
    case = CASES[name]
    pipe = case.make()
    pipe.set_progress_bar_config(disable=True)
    call = {k: v for k, v in case.call(1).items() if k != "num_inference_steps"}
    foreseen = driver_for(pipe).grid(pipe, STEPS, call)
    with torch.no_grad():
        pipe(**call, num_inference_steps=STEPS)
    assert foreseen == grid_of(pipe.scheduler)
    assert foreseen.steps == STEPS


def test_a_chunk_of_a_window_has_the_steps_of_its_settings() -> None:
    pipe = tiny_pipeline()
    found: list[object] = []

    def note(pipe: object, *rest: object) -> dict[str, torch.Tensor]:
        found.append(grid_of_run(pipe.current_run))  # type: ignore[attr-defined]
        return {}

    foreseen = driver_for(pipe).grid(pipe, 4, {})
    size = {"height": 32, "width": 32, "num_frames": 8}
    pipe(PROMPT, **size, num_inference_steps=4, output_type="latent", callback_on_step_end=note)
    assert foreseen.steps == 4
    assert set(found) == {foreseen}
    with pytest.raises(MagiConfigError):
        driver_for(pipe).grid(pipe, 5, {})
