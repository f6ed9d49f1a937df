"""The modulated input: its own token axis, the rows beside the tokens, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import CapturedModel, capture
from mccompile.capture.types import Beside

DIM = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return x + self.attend(F.layer_norm(x, [DIM]), text)

    def attend(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.q(x), *self.kv(x).chunk(2, -1))


class Joined(Block):
    """As CogVideoX: text and tokens are projected together."""

    def attend(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return super().attend(torch.cat([text, x], 1), text)[:, text.shape[1] :]


class TokensFirst(Block):
    """As nn.MultiheadAttention: tokens lie along the first axis."""

    def attend(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        q, (k, v) = self.q(x.transpose(0, 1)), self.kv(x.transpose(0, 1)).chunk(2, -1)
        return F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v)))


class Windowed(Block):
    """Attention within pairs of tokens."""

    def attend(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return super().attend(x.unflatten(1, (-1, 2)), text).flatten(1, 2)


class Unprojected(Block):
    """The queries are the normalised tokens themselves."""

    def attend(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, *self.kv(x).chunk(2, -1))


class Model(nn.Module):
    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(), block()])

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, text)
        return x


def captured(block: Callable[[], nn.Module]) -> CapturedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        calls = [{"x": torch.randn(1, n, DIM), "text": torch.randn(1, 3, DIM)} for n in (6, 10)]
        return capture(Model(block).eval().requires_grad_(False), *calls)


@pytest.mark.parametrize(
    ("block", "axis", "beside"), [(Block, 1, Beside(0, 0)), (Joined, 1, Beside(3, 0)), (TokensFirst, 0, Beside(0, 0))]
)
def test_its_tokens_are_found(block: type[Block], axis: int, beside: Beside) -> None:
    (kind,) = captured(block).kinds
    assert kind.partial is not None
    assert not isinstance(kind.modulated, str)
    assert (kind.modulated.token_axis, kind.modulated.beside) == (axis, beside)
    assert kind.modulated.node in {n.name for n in kind.full.graph.nodes}


@pytest.mark.parametrize(
    ("block", "reason"),
    [(Windowed, "does not hold the video tokens along one axis"), (Unprojected, "come from no linear layer")],
)
def test_what_is_no_modulated_input_is_refused(block: type[Block], reason: str) -> None:
    (kind,) = captured(block).kinds
    assert isinstance(kind.modulated, str)
    assert reason in kind.modulated
