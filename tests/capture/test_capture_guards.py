"""What export demands of the sizes of a call is kept: at another size a forward may take another branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from mccompile.capture import capture, flat_inputs, run_full, spaced
from mccompile.capture.errors import CallError
from mccompile.capture.extremes import compares, symbolic_extremes, takes_extremes
from mccompile.capture.guards import AT_EACH_SIZE, broken, sizes_of_constants
from mccompile.runtime.new_sizes import NewSizes
from tests import zoo
from tests.pipelines.conftest import wan_transformer
from tests.zoo import ToyTransformer

CALL = {"x": torch.zeros(2, 6, 8), "n": 5, "pair": [torch.zeros(3), {"y": torch.zeros(4)}], "flag": True}


@pytest.mark.parametrize(
    ("guard", "holds"),
    [
        ("L['x'].size()[1] > 5", True),
        ("L['x'].size()[1] > 6", False),
        ("(L['x'].size()[2] % 2) == 0 and not L['n'] != 5", True),
        ("L['x'].size()[1]*L['x'].size()[2] == 2*(L['x'].size()[1] // 2)*max(1, L['x'].size()[2])", True),
        ("1 <= L['pair'][0].size()[0] < 3 or L['pair'][1]['y'].size()[0] == -1 + 5", True),
        ("min(L['n'], 9) - 5 >= 1", False),
        ("L['x'].size()[1] // (L['n'] - 5) == 1", False),
        ("L['z'].size()[0] == 3", False),
        ("L['x'].size()[9] == 3", False),
        ("__import__('os').system('true') == 0", False),
        ("L['x'].numel() == 96", False),
        ("L['x'].size()[1] >", False),
        ("sqrt(L['n']) > 1", False),
    ],
)
def test_guards_are_read_as_data(guard: str, holds: bool) -> None:
    """What is not a condition on sizes counts as broken, and is never executed."""
    assert broken((guard,), CALL) == (() if holds else (guard,))


def test_sizes_that_both_calls_share_are_demanded() -> None:
    other = {**CALL, "x": torch.zeros(2, 9, 8)}
    assert sizes_of_constants(CALL, other) == ("L['x'].size()[0] == 2", "L['x'].size()[2] == 8")


class Branching(WanTransformer3DModel):
    """A Wan transformer whose forward doubles long videos, and reads `pad` of another size alike."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor):
        if hidden_states.size(2) > 3:
            hidden_states = hidden_states * 2
        return super().forward(hidden_states, timestep, encoder_hidden_states, return_dict=False)


def call(frames: int, height: int, width: int, text: int = 7) -> Mapping[str, object]:
    generator = torch.Generator().manual_seed(frames)
    return {
        "hidden_states": torch.randn(1, 4, frames, height, width, generator=generator),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, text, 16, generator=generator),
    }


def test_a_size_at_which_forward_branches_is_refused_and_others_are_run() -> None:
    plain = wan_transformer(layers=2)
    model = Branching.from_config(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    captured = capture(model, call(4, 6, 14), call(5, 10, 22))
    assert any("size()[2]" in guard for guard in captured.guards)
    sizes = NewSizes(model, captured)

    def asked(*size: int) -> dict[str, object]:
        given = call(*size)
        return {name: given[name] for name in captured.inputs}

    with torch.no_grad():
        sizes.check(asked(6, 4, 4))
        with pytest.raises(CallError, match=r"the model takes another branch at this size: not .*size"):
            sizes.check(asked(3, 6, 8))
        sizes.check(asked(4, 6, 8, 9))  # another length of the text than both calls had: numbers say that it is right
        silent = NewSizes(model, replace(captured, guards=()))
        silent.check(asked(3, 6, 8))  # without the guards nothing is noticed


class Reaching(ToyTransformer):
    """A model that reads a table from the longer side of its grid on, as Qwen-Image does for its text."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(1, 2, 64))

    def forward(self, latent: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        reach = max(latent.size(3) // 2, latent.size(4) // 2)
        return super().forward(latent * self.table[reach : reach + 1], time)


def test_the_longer_side_is_no_branch() -> None:
    """Captured from two landscapes, the graph is the model at a portrait too, and demands nothing of it."""
    torch.manual_seed(0)
    model = Reaching().eval().requires_grad_(False)
    landscapes = [{"latent": torch.randn(1, 4, *size), "time": torch.rand(1)} for size in ((4, 6, 14), (5, 10, 22))]
    captured = capture(model, *landscapes)
    assert not any(map(compares, captured.guards))
    assert takes_extremes(model)
    assert not takes_extremes(ToyTransformer())
    portrait = {"latent": torch.randn(1, 4, 4, 14, 6), "time": torch.rand(1)}
    (given,) = run_full(captured, flat_inputs(captured, portrait)).outputs
    torch.testing.assert_close(given, model(**portrait))
    assert "max" not in vars(zoo)


def test_the_larger_of_numbers_that_are_no_sizes_is_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "min", lambda *values: "own", raising=False)
    with symbolic_extremes(ToyTransformer()):
        assert vars(zoo)["max"](2, 5, 3) == 5
        assert vars(zoo)["max"]([2, 7], key=lambda x: -x) == 2
        assert zoo.min(1, 2) == "own"  # type: ignore[attr-defined]
    assert "max" not in vars(zoo)


class Spaced(ToyTransformer):
    """A model that weighs its frames by `torch.linspace`, which export writes by other operators."""

    def forward(self, latent: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return super().forward(latent * torch.linspace(1, 2, latent.size(2)).view(-1, 1, 1), time)


@pytest.mark.parametrize("wrong", [False, True])
def test_what_export_writes_in_another_way_is_looked_at_at_each_size(
    wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake is none at the sizes of the recorded calls."""
    own = spaced._spaced
    if wrong:
        monkeypatch.setattr(spaced, "_spaced", lambda a, b, n, **more: own(a, b, n, **more) + (n - 4) * (n - 5))
    torch.manual_seed(0)
    model = Spaced().eval().requires_grad_(False)
    calls = [{"latent": torch.randn(1, 4, f, h, w), "time": torch.rand(1)} for f, h, w in ((4, 6, 14), (5, 10, 22))]
    captured = capture(model, *calls)
    assert AT_EACH_SIZE in captured.guards
    sizes, other = NewSizes(model, captured), {"latent": torch.randn(1, 4, 6, 6, 8), "time": torch.rand(1)}
    with torch.no_grad():
        sizes.check(calls[0])
        if wrong:
            with pytest.raises(CallError, match="gives something else at this size"):
                sizes.check(other)
        else:
            sizes.check(other)
