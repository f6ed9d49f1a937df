"""The run that a plan is made for where no model says one: flow matching, as SkyReels-V2 and Wan use it."""

from __future__ import annotations

from mccompile.policy.evaluate import Grid

DEFAULT_STEPS = 50
FLOW_SHIFT = 5.0


def flow_grid(steps: int) -> Grid:
    """Flow matching's grid of timesteps and sigmas, shifted, from noise to data."""
    even = [1 - i * (1 - 1 / 1000) / steps for i in range(steps)]
    sigmas = tuple(FLOW_SHIFT * s / (1 + (FLOW_SHIFT - 1) * s) for s in even)
    return Grid(steps, tuple(1000 * s for s in sigmas), sigmas)
