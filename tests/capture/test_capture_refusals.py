"""What cannot be proved is refused with site and reason, and the model still runs in full; the rest is an error."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.api import compile
from mccompile.capture import CapturedModel, CaptureError, capture, flat_inputs, run_full
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order

DIM = 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return x + self.attend(q, k, v)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Counting(Attention):
    """Scales by the number of tokens."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return super().attend(q, k, v) * q.shape[1]


class Frames(Attention):
    """Takes frames apart inside the block."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        frames = [t.unflatten(1, (-1, 2)) for t in (q, k, v)]
        return F.scaled_dot_product_attention(*frames).flatten(1, 2)


class Written(Attention):
    """Writes into tokens that it has taken apart."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        frames = v.unflatten(1, (-1, 2))
        frames.mul_(2)
        return super().attend(q, k, v)


class Stack(nn.Module):
    def __init__(self, block: type[Attention]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(), block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x * 2


def captured(block: type[Attention], *rank: int) -> tuple[Stack, CapturedModel]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stack(block).eval().double()
        calls = [{"x": torch.randn(1, *rank, n, DIM, dtype=torch.float64)} for n in (6, 10)]
        return model, capture(model, *calls)


def runs_in_full(model: nn.Module, found: CapturedModel, *shape: int) -> None:
    call = {"x": torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
    with torch.no_grad():
        assert torch.equal(run_full(found, flat_inputs(found, call)).outputs[0], model(**call))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Counting, "uses the number of tokens as data"),
        (Written, "splits or merges the token axis"),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else "",
)
def test_unproved_blocks_are_refused_and_run_in_full(block: type[Attention], reason: str) -> None:
    model, found = captured(block)
    assert [kind.partial for kind in found.kinds] == [None]
    assert found.gather is None
    (refusal,) = [r for r in found.refusals if r.site != "grid"]
    assert refusal.site.startswith("blocks.0")
    assert reason in refusal.reason
    runs_in_full(model, found, 1, 8, DIM)


class Careful(Attention):
    """Switches autocast off around its attention, and gradients."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            return super().attend(q, k, v)


@pytest.mark.parametrize("block", [Attention, Careful])
def test_plain_blocks_are_proved(block: type[Attention]) -> None:
    model, found = captured(block)
    assert found.kinds[0].partial is not None
    assert len(found.kinds) == 1
    runs_in_full(model, found, 1, 8, DIM)


class Casting(Attention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().attend(q, k, v)


def test_autocast_inside_forward_is_an_error() -> None:
    with pytest.raises(CaptureError, match="MC0401") as caught:
        captured(Casting)
    assert "switches on autocast" in caught.value.cause


class Planes(nn.Module):
    """Keeps frames and places apart: [batch, frames, places, channels]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(), Attention()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_streams_without_one_token_axis_are_refused() -> None:
    model = Planes().eval().double()
    calls = [{"x": torch.randn(1, f, n, DIM, dtype=torch.float64)} for f, n in ((4, 6), (5, 10))]
    found = capture(model, *calls)
    assert "has no single token axis" in found.refusals[0].reason
    assert found.streams[0].token_axis is None
    runs_in_full(model, found, 1, 3, 7, DIM)


class Overwriting(Attention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(2))


def test_a_forward_that_writes_into_its_argument_is_an_error() -> None:
    with pytest.raises(CaptureError, match="MC0401") as caught:
        captured(Overwriting)
    assert "writes in place" in caught.value.cause


@pytest.mark.parametrize(
    ("one", "two", "cause"),
    [
        ({"x": torch.zeros(1, 6, DIM)}, {"x": torch.zeros(1, 6, DIM)}, "no tensor changes its size"),
        ({"x": torch.zeros(1, 6, DIM)}, {"x": torch.zeros(6, DIM)}, "[1, 6, 8] torch.float32 in the first call"),
        ({"x": torch.zeros(1, 6, DIM)}, {"x": 3}, "Tensor against int"),
        ({"y": 1}, {"y": 1}, "it has no argument 'y'"),
        ({"x": torch.zeros(1, 6, DIM)}, {}, "the second "),
    ],
)
def test_probes_that_do_not_fit_are_an_error(one: dict[str, object], two: dict[str, object], cause: str) -> None:
    with pytest.raises(CaptureError, match="MC0402") as caught:
        capture(Stack(Attention).eval(), one, two)
    assert cause in caught.value.cause


class Gated(Attention):
    """Another class of block, which takes the time of every frame as well."""

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * time.repeat_interleave(x.shape[1] // time.shape[1], 1)[..., None]


class Alternating(nn.Module):
    """Time in front of the latent; frames of two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(), Gated(), Attention(), Gated()])

    def forward(self, time: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(1, 2)
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, time) if i % 2 else block(tokens)
        return tokens.view(x.shape)


def test_blocks_of_two_classes_are_two_kinds() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Alternating().eval().double()
        calls = [
            {"time": torch.rand(1, f, dtype=torch.float64), "x": torch.randn(1, f, n, DIM, dtype=torch.float64)}
            for f, n in ((4, 6), (5, 10))
        ]
        found = capture(model, *calls)
    assert [site.kind for site in found.blocks] == [0, 1, 0, 1]
    assert found.kinds[0].partial is not None
    assert found.kinds[1].partial is not None  # the rows of what is repeated inside the block are picked
    assert found.kinds[1].mixing == ()
    with torch.no_grad():
        for call in calls:
            assert torch.equal(run_full(found, flat_inputs(found, call)).outputs[0], model(**call))


def test_a_size_at_which_the_graph_does_not_run_is_an_error() -> None:
    model = Stack(Frames).eval().requires_grad_(False)
    probe, second, odd = ({"x": torch.randn(1, n, DIM)} for n in (6, 10, 7))
    clock = Timeline("run", Grid(1, (900.0,), (0.9,)), steps_in_order(Grid(1, (900.0,), (0.9,))))
    compiled = compile(model, "compute", probe=probe, second=second, clock=clock, backend="eager")
    assert torch.equal(compiled(**probe), model(**probe))
    with pytest.raises(CaptureError, match="MC0405") as caught:
        compiled(**odd)
    assert "does not run at this size" in caught.value.cause
