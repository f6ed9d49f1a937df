"""Branches of a forward on what its arguments hold: one of them is captured, and a call of the other one is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mccompile
from mccompile.capture.errors import CallError, ExportError
from mccompile.capture.export import export_model
from mccompile.capture.guards import arguments_of, broken, of_values
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.zoo import zoo


class _Branching(nn.Module):
    def __init__(self, asks: str = "argument") -> None:
        super().__init__()
        self.asks = asks
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        match self.asks:
            case "argument":
                given = torch.all(image == 0)
            case "weight":
                given = self.scale > 1
            case _:
                given = torch.all(image + torch.tensor([1.0, 0.0]) == 0)
        return x * 2 if given else x + image.sum(-1, keepdim=True)


def _call(rows: int, value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.arange(2.0 * rows).reshape(1, rows, 2), "image": torch.full((1, 1, 2), value)}


@pytest.mark.parametrize(("value", "guard"), [(0.0, ""), (3.0, "not ")])
def test_the_branch_of_both_calls_is_captured_with_its_condition(value: float, guard: str) -> None:
    model = _Branching().eval()
    exported = export_model(model, _call(3, value), _call(5, value))
    assert exported.told == (f"{guard}aten.all.default(aten.eq.Scalar(L['image'], 0))",)
    assert torch.equal(exported.module(**_call(4, value)), model(**_call(4, value)))
    assert of_values(exported.told[0])
    assert arguments_of(exported.told[0]) == {"image"}
    assert not broken(exported.told, _call(7, value))
    assert broken(exported.told, _call(7, 3.0 - value)) == exported.told


def test_calls_that_take_different_branches_cannot_be_captured() -> None:
    with pytest.raises(ExportError, match="MC0401"):
        export_model(_Branching().eval(), _call(3, 0.0), _call(5, 1.0))


@pytest.mark.parametrize("asks", ["weight", "constant"])
def test_a_condition_of_more_than_arguments_is_refused(asks: str) -> None:
    with pytest.raises(ExportError, match="branches on a value that is no pure function of its arguments"):
        export_model(_Branching(asks).eval(), _call(3, 1.0), _call(5, 1.0))


class _WithImage(nn.Module):
    """A video model that also takes an image, and leaves it out where it is empty."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.embed = model, nn.Linear(6, 16)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor,
        image: torch.Tensor, return_dict: bool = False,
    ) -> object:  # fmt: skip
        if not torch.all(image == 0):
            encoder_hidden_states = encoder_hidden_states + self.embed(image)
        return self.model(hidden_states, timestep, encoder_hidden_states, return_dict=return_dict)


def test_a_call_of_another_branch_is_refused_whenever_its_values_change() -> None:
    family = zoo("wan")
    model = _WithImage(family.model(torch.float32)).eval()
    image = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(1))
    calls = [family.call(size, dtype=torch.float32) | {"image": image} for size in family.sizes]
    grid = Grid(3, (900.0, 600.0, 300.0), (0.9, 0.6, 0.3))
    clock = Timeline("first", grid, steps_in_order(grid))
    compiled = mccompile.compile(model, "compute", probe=calls[0], second=calls[1], clock=clock, backend="eager")
    with torch.no_grad():
        for clock.row, given in enumerate((image, image.clone(), image * 2)):
            (made,), (wanted,) = compiled(**calls[2] | {"image": given}), model(**calls[2] | {"image": given})
            assert torch.equal(made, wanted)
    clock.request, clock.row = "second", 0
    image = image.clone()
    compiled(**calls[2] | {"image": image})
    image.zero_()
    clock.row = 1
    with pytest.raises(CallError, match="takes another branch for what its arguments hold: aten"):
        compiled(**calls[2] | {"image": image})
