"""Shipped policies of published methods in whole runs of SkyReels-V2: chunks are at steps of their own."""

from __future__ import annotations

import pytest
import torch

from mccompile.runtime.trace import share_computed
from tests.runtime.conftest import Tiny
from tests.runtime.test_laws import compiled
from tests.shipped_methods import SETTINGS


@pytest.mark.parametrize("policy", SETTINGS)
def test_a_policy_runs_on_chunks_and_repeats(policy: str, tiny: Tiny) -> None:
    """It reuses something, nothing is odd, and a second run with the same seed is the same to the last bit."""
    stock = tiny.run()
    model = compiled(tiny, policy, **SETTINGS[policy])
    video = tiny.run()
    done = [(e.step, e.chunk, e.branch, e.region, e.computed) for e in model.events]
    assert torch.isfinite(video).all()
    assert not torch.equal(video, stock)
    assert float((video - stock).norm() / stock.norm()) < 0.5
    assert {e.action for e in model.events} & {"reuse", "partial"}
    assert share_computed(model.events) < 0.9
    assert model.runner.not_finite() == 0
    assert torch.equal(tiny.run(), video)
    assert [(e.step, e.chunk, e.branch, e.region, e.computed) for e in model.events][-len(done) :] == done
