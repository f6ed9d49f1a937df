"""SenCache's decisions and outputs on a small Wan, against its code's loop written out in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

import mccompile.api as api
from mccompile.language.coefficients import coefficient_sets
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.runtime.test_forecast import GRID, STEPS, call


def nearest(name: str) -> list[float]:
    """A measured table at the steps of this run."""
    values = coefficient_sets()["table", name].values
    return [values[round(i * (len(values) - 1) / (STEPS - 1))] for i in range(STEPS)]


def plain(
    model: WanTransformer3DModel, threshold: float, early: float, in_a_row: int
) -> tuple[list[torch.Tensor], list[bool]]:
    """The reference of latents and timestep moves with each computation; the error is not summed up."""
    by_latent, by_timestep = nearest("embedded_sensitivity_latent"), nearest("embedded_sensitivity_timestep")
    made, computed = [], []
    at, kept, latents, skipped = 0, torch.zeros(0), torch.zeros(0), 0
    entered: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    hooks = [
        model.blocks[0].register_forward_pre_hook(lambda _, given: entered.append(given[0])),
        model.blocks[-1].register_forward_hook(lambda _, __, out: left.append(out)),
    ]
    for step in range(STEPS):
        now = call(step)
        here = now["hidden_states"]
        assert isinstance(here, torch.Tensor)
        reuse = False
        if 0 < step < STEPS - 1:
            moved = float((here - latents).square().mean().sqrt())
            error = by_latent[at] * moved + by_timestep[at] * abs(GRID.timesteps[step] - GRID.timesteps[at])
            reuse = error < (early if step < 0.2 * STEPS else threshold) and skipped < in_a_row
        if reuse:
            skipped += 1
            last = model.blocks[-1].register_forward_hook(lambda *_: entered[-1] + kept)  # noqa: B023
            made.append(model(**now)[0])
            last.remove()
        else:
            made.append(model(**now)[0])
            at, latents, kept, skipped = step, here, left[-1] - entered[-1], 0
        computed.append(not reuse)
    for hook in hooks:
        hook.remove()
    return made, computed


@pytest.mark.parametrize(("threshold", "early", "in_a_row"), [(0.6, 0.1, 3), (1.5, 0.8, 2), (0.05, 0.01, 3)])
def test_sencache(
    threshold: float, early: float, in_a_row: int, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    clock = Timeline("request", GRID, steps_in_order(GRID))
    settings = {"threshold": threshold, "early": early, "in_a_row": in_a_row}
    ours = api.compile(small_wan, "sencache", backend="eager", captured=captured_wan, clock=clock, **settings)
    found = []
    for clock.row in range(STEPS):
        found.append(ours(**call(clock.row))[0])
    with torch.no_grad():
        wanted, computed = plain(small_wan, threshold, early, in_a_row)
    assert [event.action == "full" for event in ours.events] == computed
    assert np.mean(computed) < 1 or threshold < 0.1
    for row, (a, b) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")
