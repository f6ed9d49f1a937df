"""The step grid of a diffusers scheduler."""

from __future__ import annotations

from mccompile.policy.phases import Grid


def grid_of(scheduler: object) -> Grid:
    """The step grid that a diffusers scheduler has set: its timesteps (as the model gets them) and sigmas."""
    timesteps = [float(t) for t in scheduler.timesteps]  # type: ignore[attr-defined]
    sigmas = getattr(scheduler, "sigmas", None)
    values = [float(s) for s in sigmas] if sigmas is not None else [t / 1000 for t in timesteps]
    return Grid(len(timesteps), tuple(timesteps), tuple(values[: len(timesteps)]))
