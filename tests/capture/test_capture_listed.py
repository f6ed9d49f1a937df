"""Blocks that lie in no list, run again, write in place, or take `**kwargs`: captured, and their rows are proved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import CaptureError, capture, flat_inputs, run_full

DIM = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.up = nn.Linear(DIM, 3 * DIM), nn.Sequential(nn.Linear(DIM, DIM), nn.Linear(DIM, DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(x + self.seen(x))

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v)


class InPlace(Block):
    """Writes into the stream that it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.seen(x)
        x += self.up(x)
        return x


class Base(nn.Module):
    """Tokens are a tensor of the model's own, so that blocks may write into them."""

    def __init__(self, **blocks: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(DIM, DIM)
        for name, block in blocks.items():
            self.add_module(name, block)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.embed(x)) * 2

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:  # type: ignore[union-attr]
            x = block(x)
        return x


class Attributes(Base):
    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))  # type: ignore[operator]


class Numbered(Base):
    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_1(self.block_0(x))  # type: ignore[operator]


class Named(Base):
    def run(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks.values():  # type: ignore[operator]
            x = block(x)
        return x


class Twice(Base):
    def run(self, x: torch.Tensor) -> torch.Tensor:
        return super().run(super().run(x))


class Other(Base):
    """Reads another name of what a block writes into."""

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return super().run(x.view(x.shape)) + x


class AnyArguments(Base):
    def forward(self, **arguments: torch.Tensor) -> torch.Tensor:
        return super().forward(arguments["x"]) + arguments["shift"]


def lists(block: type[Block] = Block) -> nn.ModuleList:
    return nn.ModuleList([block(), block()])


MODELS = {
    "attributes": (lambda: Attributes(first=Block(), middle=Block(), last=Block()), ["block.0", "block.1", "block.2"]),
    "numbered": (lambda: Numbered(block_0=Block(), block_1=Block()), ["block.0", "block.1"]),
    "dict": (lambda: Named(blocks=nn.ModuleDict({"front": Block(), "back": Block()})), ["blocks.0", "blocks.1"]),
    "twice": (lambda: Twice(blocks=lists()), [f"blocks.{i}" for i in range(4)]),
    "in place": (lambda: Base(blocks=lists(InPlace)), ["blocks.0", "blocks.1"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_found_and_their_rows_proved(name: str) -> None:
    make, paths = MODELS[name]
    torch.manual_seed(0)
    model = make().eval().double().requires_grad_(False)
    captured = capture(model, *({"x": torch.randn(1, n, DIM).double()} for n in (6, 10)))
    assert [site.path for site in captured.blocks] == paths
    assert len(captured.kinds) == 1
    assert captured.kinds[0].partial is not None
    x = torch.randn(1, 8, DIM).double()
    assert torch.equal(run_full(captured, flat_inputs(captured, {"x": x})).outputs[0], model(x))  # type: ignore[arg-type]


def test_runs_of_one_block_share_its_weights() -> None:
    model = Twice(blocks=lists()).eval().requires_grad_(False)
    captured = capture(model, {"x": torch.randn(1, 6, DIM)}, {"x": torch.randn(1, 10, DIM)})
    one, two, again, last = (site.weights for site in captured.blocks)
    assert (one, two) == (again, last)
    assert one != two


def test_a_value_that_is_read_by_another_name_stays_in_place() -> None:
    model = Other(blocks=lists(InPlace)).eval().requires_grad_(False)
    with pytest.raises(CaptureError, match="MC0403") as refused:
        capture(model, {"x": torch.randn(1, 6, DIM)}, {"x": torch.randn(1, 10, DIM)})
    assert "writes in place" in refused.value.cause


def test_arguments_may_come_in_a_dict() -> None:
    model = AnyArguments(blocks=lists()).eval().requires_grad_(False)
    calls = [{"x": torch.randn(1, n, DIM), "shift": torch.randn(1, 1, DIM)} for n in (6, 10, 8)]
    captured = capture(model, *calls[:2])
    assert captured.inputs == ("x", "shift")
    assert captured.kinds[0].partial is not None
    assert torch.equal(run_full(captured, flat_inputs(captured, calls[2])).outputs[0], model(**calls[2]))  # type: ignore[arg-type]
    assert "forward" not in vars(model)
