"""A compiled model is in eval mode, and a model that was in training mode is so again after `undo`."""

from __future__ import annotations

import torch
from torch import nn

from mccompile import api
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.zoo import ToyTransformer

GRID = Grid(3, (900.0, 600.0, 300.0), (0.9, 0.6, 0.3))


class Dropped(ToyTransformer):
    """A model whose training mode leaves out half of its input."""

    def __init__(self) -> None:
        super().__init__(layers=2)
        self.drop = nn.Dropout(0.5)

    def forward(self, latent: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return super().forward(self.drop(latent), time)


def _call(*size: int) -> dict[str, torch.Tensor]:
    return {"latent": torch.randn(1, 4, *size), "time": torch.rand(1)}


def test_training_mode_comes_back_and_no_dropout_is_compiled() -> None:
    model, call = Dropped(), _call(3, 6, 10)
    model.patch.eval()
    modes = [module.training for module in model.modules()]
    prepared = api.prepare(model, probe=call, second=_call(4, 10, 14))
    assert [module.training for module in model.modules()] == modes
    compiled = api.compile(model, "compute", backend="eager", captured=prepared)
    assert not any(module.training for module in model.modules())
    compiled.clock = Timeline("request", GRID, steps_in_order(GRID))
    with torch.no_grad():
        torch.testing.assert_close(compiled(**call), Dropped.forward(model, **call), atol=1e-6, rtol=1e-6)
    compiled.undo()
    assert [module.training for module in model.modules()] == modes
