"""The model behind the page: captured once, vanilla generated once per video, stopped between steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mccompile.generate.errors import UnknownModel
from mccompile.policy.phases import Grid
from mccompile.studio.serve.orders import RESULTS, Order, Preset, RunProgress
from mccompile.studio.serve.warm import StopAsked, WarmModel
from tests.embedded_once import one_capture
from tests.generate.conftest import SMALL
from tests.serve.fakes import GIVEN, TEXT, order

TINY = Preset("tiny", SMALL, Grid(4, (4.0, 3.0, 2.0, 1.0), (1.0, 0.7, 0.5, 0.2)))
PROMPT = "a red circle moving right over a slate texture"


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmModel]:
    with one_capture():
        yield WarmModel(GIVEN)


def asked(folder: Path, text: str = TEXT) -> Order:
    return replace(order(folder, PROMPT, text), preset=TINY)


def test_the_sizes_of_the_embedded_model_are_ready_made(warm: WarmModel) -> None:
    loaded = warm.loaded()
    assert (loaded.kind, loaded.prompt) == ("SkyReelsV2DiffusionForcingPipeline", PROMPT)
    assert [p.grid.steps for p in loaded.presets] == [25, 50, 50]
    with one_capture():
        other = WarmModel(replace(GIVEN, settings={"num_inference_steps": 8})).loaded()
    assert [(p.name, p.grid.steps) for p in other.presets] == [("as asked for", 8)]
    with pytest.raises(UnknownModel, match="MC0704"):
        WarmModel(replace(GIVEN, model="nowhere/at-all"))


def test_runs_of_one_video_share_vanilla(warm: WarmModel, tmp_path: Path) -> None:
    """The policy that computes everything gives vanilla's video; another policy, and another value, costs its run."""
    told: list[str] = []

    def tell(progress: RunProgress) -> None:
        told.append(progress.doing)

    whole = warm.run(asked(tmp_path / "a", "policy mine extends compute {\n}\n"), tell)
    assert (whole.psnr, whole.worst, whole.flops, whole.tokens) == (None, None, 1.0, 1.0)
    assert told.count("vanilla") == told.count("mine") == 6  # four steps, and two by which the second chunk lags
    assert sorted(path.name for path in (tmp_path / "a" / "results").iterdir()) == sorted(RESULTS)
    told.clear()
    half = warm.run(asked(tmp_path / "b"), tell)
    fewer = warm.run(replace(asked(tmp_path / "c"), values={"n": 3.0}), tell)
    assert told.count("vanilla") == 0
    assert half.tokens == fewer.tokens < 0.6  # of four steps, 0 and 2, and 0 and 3
    assert half.psnr is not None
    assert half.flops < 0.6


def test_a_run_stops_with_its_next_step(warm: WarmModel, tmp_path: Path) -> None:
    steps: list[int] = []

    def tell(progress: RunProgress) -> None:
        if progress.doing == "mine":
            steps.append(progress.done)
            if progress.done == 2:
                raise StopAsked

    with pytest.raises(StopAsked):
        warm.run(asked(tmp_path / "a"), tell)
    assert steps == [1, 2]
    assert warm.run(asked(tmp_path / "b"), lambda _: None).tokens < 0.6
