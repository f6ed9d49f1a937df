"""Shipped policies of published methods in whole runs of Wan's pipeline, both guidance branches in separate calls."""

from __future__ import annotations

import pytest
import torch

from tests.pipelines.conftest import Wan, distance, generate
from tests.shipped_methods import SETTINGS


@pytest.mark.parametrize("policy", SETTINGS)
def test_a_policy_runs_and_repeats(policy: str, tiny_wan: Wan) -> None:
    """It reuses something, nothing is odd, and a second run with the same seed is the same to the last bit."""
    stock = generate(tiny_wan.pipe(), num_inference_steps=12)
    pipe = tiny_wan.pipe()
    model = tiny_wan.compile(pipe, policy, **SETTINGS[policy])
    latents = generate(pipe, num_inference_steps=12)
    done = {(e.branch, e.step, e.region, e.computed) for e in model.events}
    assert torch.isfinite(latents).all()
    assert 0 < distance(latents, stock) < 0.5
    assert {e.action for e in model.events} & {"reuse", "partial"}
    assert model.runner.not_finite() == 0
    assert torch.equal(generate(pipe, num_inference_steps=12), latents)
    assert {(e.branch, e.step, e.region, e.computed) for e in model.events} == done
