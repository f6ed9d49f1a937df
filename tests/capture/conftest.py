"""Captured tiny models, each captured once per worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn

from mccompile.capture import CapturedModel, FullRun, capture, flat_inputs, run_full
from tests.zoo import Call, Family, zoo


@dataclass(frozen=True)
class Specimen:
    """A family with its model, captured at the first two of its sizes."""

    family: Family
    model: nn.Module
    captured: CapturedModel

    def run(self, call: Call) -> FullRun:
        with torch.no_grad():
            return run_full(self.captured, flat_inputs(self.captured, call))


@cache
def _specimen(name: str) -> Specimen:
    torch.set_num_threads(1)
    family = zoo(name)
    model = family.model()
    return Specimen(family, model, capture(model, family.call(family.sizes[0]), family.call(family.sizes[1])))


@pytest.fixture(scope="session")
def specimen_of() -> Callable[[str], Specimen]:
    """The captured model of a family, by name."""
    return _specimen


@pytest.fixture(scope="session")
def specimen(request: pytest.FixtureRequest) -> Specimen:
    """The captured model of the family named by the test's parameter."""
    return _specimen(request.param)
