"""Tiny measurements, made once per session: two layers of width 32, eager, one round."""

from __future__ import annotations

import pytest
import torch

from mccompile.studio.bench.ladder_steps import Conditions

torch.set_num_threads(1)
EAGER = Conditions(torch.device("cpu"), torch.float32, "eager", 2)


@pytest.fixture(scope="session")
def eager() -> Conditions:
    return EAGER
