"""Training: two steps change the weights, leave a checkpoint that goes on, and a folder that loads."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel

from mccompile.models.embedded import build
from mccompile.models.embedded import train as training
from mccompile.models.embedded.train import State, TrainingRun, rate, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingRun]:
    """Two steps of one short sample, not compiled, with a codec fitted on little data, at a constant rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "CODEC_SCENES", 2)
        patch.setattr(build, "LAYERS", 1)  # Muon multiplies in bfloat16, which is slow on most CPUs
        patch.setattr(training, "FRAMES", 15)
        patch.setattr(training, "SHORT_FRAMES", 7)
        yield TrainingRun(tmp_path_factory.mktemp("run"), 2, batch=1, threads=1, minutes=1e6, compiled=False, seed=3)


def losses(run: TrainingRun, resume: bool = False) -> list[float]:
    """Train to the end."""
    return [loss for _, loss in train(run, resume)]


@pytest.fixture(scope="module")
def seen(run: TrainingRun) -> list[float]:
    """The losses of the run."""
    return losses(run)


def test_two_steps(run: TrainingRun, seen: list[float]) -> None:
    """Losses near that of predicting nothing, moved weights, and a folder with the averaged weights in it."""
    assert len(seen) == 2
    assert all(0.1 < loss < 10 for loss in seen)
    kept, start = State.load(run.out / "state.pt"), State.fresh()
    assert kept.step == 2
    moved = [not torch.equal(a, b) for a, b in zip(kept.model.parameters(), start.model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    shipped = SkyReelsV2Transformer3DModel.from_pretrained(run.out / "pipeline" / "transformer")
    for parameter, mean in zip(shipped.parameters(), kept.average, strict=True):
        torch.testing.assert_close(parameter, mean, atol=1e-2, rtol=1e-2)
    assert (run.out / "loss.csv").read_text().count("\n") == 2


def test_resumed_is_uninterrupted(run: TrainingRun, seen: list[float]) -> None:
    """One step and one more equal two, in the constant part of the schedule: state and data go on where they were."""
    halves = replace(run, out=run.out / "halves")
    halves.out.mkdir()
    assert losses(replace(halves, steps=1)) + losses(halves, resume=True) == seen


def test_resuming_nothing_is_refused(run: TrainingRun, tmp_path: Path) -> None:
    """There must be a checkpoint."""
    with pytest.raises(FileNotFoundError):
        losses(replace(run, out=tmp_path), resume=True)


def test_rate_warms_up_stays_and_ends_at_zero() -> None:
    """The learning rate's factor over a run."""
    assert rate(0, 0.0) < 0.05
    assert rate(1000, 0.3) == 1.0
    assert rate(1000, 0.6) > rate(1000, 0.8) > rate(1000, 1.0) == 0.0
