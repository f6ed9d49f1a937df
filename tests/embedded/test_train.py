"""Training: two steps change the weights, leave a checkpoint that goes on, and a folder that loads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel

from mccompile.models.embedded import build
from mccompile.models.embedded.train import State, TrainingRun, rate, train


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingRun:
    """Two steps of one sample, not compiled, with a codec fitted on little data."""
    monkeypatch.setattr(build, "CODEC_SCENES", 4)
    return TrainingRun(tmp_path, steps=2, batch=1, threads=1, minutes=None, compiled=False, seed=3)


def losses(run: TrainingRun, resume: bool = False) -> list[float]:
    """Train to the end."""
    return [loss for _, loss in train(run, resume)]


def test_two_steps(run: TrainingRun) -> None:
    """Losses near that of predicting nothing, moved weights, and a folder with the averaged weights in it."""
    seen = losses(run)
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


def test_resumed_is_uninterrupted(run: TrainingRun) -> None:
    """One step and one more equal two, in the constant part of the schedule: state and data go on where they were."""
    whole = replace(run, out=run.out / "whole", minutes=1e6)
    halves = replace(run, out=run.out / "halves", minutes=1e6)
    for each in (whole, halves):
        each.out.mkdir()
    expected = losses(whole)
    assert losses(replace(halves, steps=1)) + losses(halves, resume=True) == expected


def test_resuming_nothing_is_refused(run: TrainingRun) -> None:
    """There must be a checkpoint."""
    with pytest.raises(FileNotFoundError):
        losses(run, resume=True)


def test_rate_warms_up_stays_and_ends_at_zero() -> None:
    """The learning rate's factor over a run."""
    assert rate(0, 0.0) < 0.05
    assert rate(1000, 0.3) == 1.0
    assert rate(1000, 0.6) > rate(1000, 0.8) > rate(1000, 1.0) == 0.0
