"""Policies that keep the gap between branches, many results, or nothing, compiled by Inductor: as uncompiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from diffusers import WanTransformer3DModel

import mccompile.api as api
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.runtime.test_forecast import GRID, STEPS, call

ORDER = ("cond", "uncond")
POLICIES: Mapping[str, Mapping[str, float]] = {
    "cfgcache": {"warmup": 2, "interval": 3},
    "spectrum": {"blend": 0.5},
    "foca": {"warmup": 2, "interval": 4},
    "adacache": {},
    "merge": {},
}


def ran(
    model: WanTransformer3DModel, prepared: api.Prepared, policy: str, backend: Literal["eager", "inductor"]
) -> tuple[list[torch.Tensor], list[str]]:
    """The outputs of both branches, and what was done at each call."""
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(model, policy, backend=backend, captured=prepared, clock=clock, **POLICIES[policy])
    found = []
    for clock.row in range(STEPS):
        for number, branch in enumerate(ORDER):
            with made.cache_context(branch):
                found.append(made(**call(clock.row, number))[0])
    return found, [event.action for event in made.events]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # PyTorch's own use of it
@pytest.mark.parametrize("policy", POLICIES)
def test_compiled_is_as_eager(
    policy: str, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    eager, compiled = (ran(small_wan, captured_wan, policy, backend) for backend in ("eager", "inductor"))
    assert eager[1] == compiled[1]
    assert set(eager[1]) == ({"partial"} if policy == "merge" else {"full", "reuse"})
    for number, (one, two) in enumerate(zip(eager[0], compiled[0], strict=True)):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5, msg=lambda m, n=number: f"call {n}: {m}")
