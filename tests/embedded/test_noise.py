"""Noise levels: what diffusion forcing is trained on."""

import numpy as np
from diffusers import UniPCMultistepScheduler

from mccompile.models.embedded.build import FLOW_SHIFT, build_scheduler
from mccompile.models.embedded.noise import Levels, sample_levels


def drawn(count: int = 4000) -> Levels:
    """Many samples of four chunks."""
    return sample_levels(np.random.default_rng(0), count, 4, FLOW_SHIFT)


def test_counted_chunks_are_neither_clean_nor_untouched() -> None:
    """The loss looks only where there is both signal and noise, and most samples have such a chunk."""
    levels = drawn()
    assert ((levels.sigma > 0) & (levels.sigma < 1))[levels.counted].all()
    assert np.isin(levels.sigma[~levels.counted], (0.0, 1.0)).all()
    assert levels.counted.any(1).mean() > 0.99


def test_every_way_of_inference_is_met() -> None:
    """Clean histories, staircases of several chunks, later chunks cleaner than earlier ones."""
    levels = drawn()
    clean_history = (levels.sigma[:, :3] == 0).all(1) & levels.counted[:, 3]
    staircase = (np.diff(levels.sigma, axis=1) > 0).all(1)
    disordered = (np.diff(levels.sigma, axis=1) < 0).any(1)
    for share in (clean_history.mean(), staircase.mean(), disordered.mean()):
        assert share > 0.04


def test_levels_lie_on_the_schedulers_curve() -> None:
    """A chunk halfway through the shipped scheduler's steps has the noise level of progress one half."""
    scheduler: UniPCMultistepScheduler = build_scheduler()
    scheduler.set_timesteps(1000)
    halfway = float(scheduler.sigmas[500])
    rest = 0.5
    assert abs(halfway - FLOW_SHIFT * rest / (1 + (FLOW_SHIFT - 1) * rest)) < 2e-3
    assert abs(np.median(drawn().sigma[drawn().counted]) - halfway) < 0.05
