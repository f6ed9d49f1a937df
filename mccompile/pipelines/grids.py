"""The step grid of a diffusers scheduler, and what the model is given as its timestep."""

from __future__ import annotations

import inspect

import torch

from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Told, Untold

TRAINED = 1000  # noise levels that diffusers' models are trained at
CLOSE = 0.005  # of a timestep: what bfloat16 leaves of it


def grid_of(scheduler: object) -> Grid:
    """The step grid that a diffusers scheduler has set: its timesteps and sigmas."""
    timesteps = [float(t) for t in scheduler.timesteps]  # type: ignore[attr-defined]
    sigmas = getattr(scheduler, "sigmas", None)
    values = [float(s) for s in sigmas] if sigmas is not None else [t / TRAINED for t in timesteps]
    return Grid(len(timesteps), tuple(timesteps), tuple(values[: len(timesteps)]))


def even_grid(steps: int) -> Grid:
    """Even steps from noise to data, for a pipeline that has no scheduler."""
    sigmas = tuple(1.0 - step / steps for step in range(steps))
    return Grid(steps, tuple(TRAINED * s for s in sigmas), sigmas)


def gives_sigmas(pipe: object) -> bool:
    """Whether a pipeline may give its scheduler sigmas of its own, or a shift that depends on the video's size.

    Those that do have an argument for a schedule of the caller's.
    """
    config = getattr(getattr(pipe, "scheduler", None), "config", {})
    takes = inspect.signature(pipe.__call__).parameters.keys() & {"sigmas", "timesteps"}  # type: ignore[operator]
    return bool(takes) or bool(config.get("use_dynamic_shifting"))


ToldForm = tuple[float, ...]  # the timesteps that the model may be given, one a step


def forms_told(grid: Grid, step: int, told: object) -> tuple[ToldForm, ...] | Untold:
    """All ways in which a pipeline may tell the steps of `grid`, that agree with the model's timestep in one of them.

    Pipelines scale timesteps (FLUX: a thousandth), count them from the other end (Mochi), or give sigmas. The grid's
    own come first. A host read.
    """
    if not isinstance(told, torch.Tensor) or told.numel() == 0:
        return Untold("the model is given no tensor `timestep`")
    low, high = float(told.min()), float(told.max())
    if low != high:
        return Untold(f"its tokens are at timesteps from {low:g} to {high:g} in one call")
    scaled = tuple(t / TRAINED for t in grid.timesteps)
    forms = (
        grid.timesteps, scaled, tuple(TRAINED - t for t in grid.timesteps), tuple(1 - t for t in scaled),
        grid.sigmas, tuple(1 - s for s in grid.sigmas),
    )  # fmt: skip
    fitting = tuple(f for f in forms if abs(f[step] - low) <= CLOSE * max(abs(f[step]), abs(low)))
    return fitting or Untold(f"the model is given {low:g} where the scheduler's timestep is {grid.timesteps[step]:g}")


def as_told(grid: Grid, forms: tuple[ToldForm, ...] | Untold) -> Told | Untold | None:
    """The first of the forms; None where it is the grid's own."""
    if isinstance(forms, Untold):
        return forms
    return None if forms[0] == grid.timesteps else Told(forms[0])
