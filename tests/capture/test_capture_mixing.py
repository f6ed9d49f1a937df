"""Operators that mix tokens run over all of them, and selected rows are those of a plain model with kept inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import CapturedModel, capture, flat_inputs, run_full
from mccompile.capture.verify import gathered_rows
from tests.capture.laws import run_partial, selections, streams_of

DIM, HEADS = 8, 2
Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = heads(q) @ heads(k).transpose(-1, -2) / math.sqrt(DIM // HEADS)
    return (scores.softmax(-1) @ heads(v)).transpose(1, 2).flatten(2)


def by_einsum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (t.unflatten(-1, (HEADS, -1)) for t in (q, k, v))
    return torch.einsum("bhqk,bkhd->bqhd", torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1), v).flatten(2)


def linear(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Linear attention as Sana has it: the tokens lie along the last axis."""
    q, k, v = (t.transpose(1, 2).unflatten(1, (HEADS, -1)) for t in (q.relu(), k.relu(), v))
    seen = (v @ k.transpose(-1, -2)) @ q / (k.sum(-1, keepdim=True).transpose(-1, -2) @ q + 1)
    return seen.flatten(1, 2).transpose(1, 2)


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Each pair of tokens sees itself alone."""
    return F.scaled_dot_product_attention(*(t.unflatten(1, (-1, 2)) for t in (q, k, v))).flatten(1, 2)


def reversed_(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return k.flip(1) * 2


def pooled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(v.mean(1, keepdim=True))


def conv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weight = torch.linspace(-1, 1, 3).to(v).expand(DIM, 1, 3)
    return F.conv1d(v.transpose(1, 2), weight, padding=1, groups=DIM).transpose(1, 2)


MIXES = [by_hand, by_einsum, linear, causal, windows, reversed_, pooled, conv]


class Block(nn.Module):
    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.qkv, self.up, self.mix = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + q * self.mix(q, k, v)
        return x + self.up(x).tanh()

    def with_kept(self, x: torch.Tensor, before: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """All rows, where only chosen tokens have new keys, values and whatever else is mixed."""
        new, old = self.qkv(x), self.qkv(before)
        q, k, v = torch.where(chosen[:, None], new, old).chunk(3, dim=-1)
        x = x + new.chunk(3, dim=-1)[0] * self.mix(q, k, v)
        return x + self.up(x).tanh()


class Stack(nn.Module):
    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(mix), Block(mix)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x * 2


def stacked(mix: Mix) -> tuple[Stack, CapturedModel]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stack(mix).eval().double().requires_grad_(False)
        calls = [{"x": torch.randn(1, n, DIM, dtype=torch.float64)} for n in (6, 10)]
        return model, capture(model, *calls)


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.__name__)
def test_selected_rows_are_those_of_a_plain_block_with_what_was_kept(mix: Mix) -> None:
    model, captured = stacked(mix)
    assert [kind.partial is not None for kind in captured.kinds] == [True]
    assert captured.kinds[0].mixing
    made = torch.Generator().manual_seed(1)
    before, now = (torch.randn(1, 8, DIM, dtype=torch.float64, generator=made) for _ in range(2))
    inputs = flat_inputs(captured, {"x": before})
    run, site = run_full(captured, inputs), captured.blocks[0]
    assert torch.equal(run.outputs[0], model(before))  # type: ignore[arg-type]
    for index in selections(8):
        chosen = torch.zeros(8, dtype=torch.bool)
        chosen[index] = True
        rows = gathered_rows(captured, inputs, index)
        (given,) = run_partial(captured, site, [now], rows, [b.clone() for b in run.buffers[0]])
        wanted = model.blocks[0].with_kept(now, before, chosen)  # type: ignore[operator]
        torch.testing.assert_close(given, wanted[:, index], rtol=0, atol=1e-12)
        assert streams_of(run, site)[0] is inputs[0]


def test_what_is_computed_over_all_tokens_is_told() -> None:
    said = {mix: stacked(mix)[1].kinds[0].mixing for mix in (by_hand, windows, pooled)}
    assert {m.reason.partition(" (")[0] for m in said[by_hand]} == {"mixes tokens: every row meets all tokens"}
    assert "splits or merges the token axis" in said[windows][0].reason
    assert "reduces over the token axis" in said[pooled][0].reason


class Masked(Block):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask) + self.mix(q, k, v)


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Masked(conv), Masked(conv)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        for block in self.blocks:
            x = block(x, mask)
        return x


def test_nothing_is_mixed_beside_a_mask_that_hides_tokens() -> None:
    """Chunks that others do not see are left out under such a mask: an operator that sees them would lack them."""
    captured = capture(Sequence().eval().double(), *({"x": torch.randn(1, n, DIM).double()} for n in (6, 10)))
    assert [kind.partial for kind in captured.kinds] == [None]
    assert "a convolution over the token axis" in captured.refusals[0].reason


class Writing(Block):
    """Writes into what was mixed before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        pooled = y.flip(1)
        y.mul_(2)
        return x + y + pooled


def test_a_value_that_is_written_later_is_not_kept() -> None:
    model = Stack(pooled)
    model.blocks = nn.ModuleList([Writing(pooled), Writing(pooled)])
    captured = capture(model.eval().double(), *({"x": torch.randn(1, n, DIM, dtype=torch.float64)} for n in (6, 10)))
    assert captured.kinds[0].partial is None
    assert "no rule says what this operator does" in captured.refusals[0].reason


class Turned(nn.Module):
    """Tokens in front of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(by_hand), Block(by_hand)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(0, 1)
        for block in self.blocks:
            x = block(x.transpose(0, 1)).transpose(0, 1)
        return x


def test_a_token_axis_in_front_of_the_samples_is_refused() -> None:
    captured = capture(Turned().eval().double(), *({"x": torch.randn(1, n, DIM).double()} for n in (6, 10)))
    assert captured.gather is not None or "no single token axis" in captured.refusals[0].reason


class Counted(Block):
    """Weighs tokens by their place, which it makes of their number; text stands in front of them."""

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        q, k, v = self.qkv(torch.cat([text, x], 1)).chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v)[:, text.shape[1] :]
        return x + seen * torch.arange(x.shape[1])[:, None].to(x)


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Counted(pooled), Counted(pooled)])

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, text)
        return x


def test_the_number_of_all_tokens_is_read_off_what_is_kept() -> None:
    """The buffers of keys hold text too; the rows are proved by capture itself."""
    calls = [{"x": torch.randn(1, n, DIM).double(), "text": torch.randn(1, 3, DIM).double()} for n in (6, 10)]
    captured = capture(Texts().eval().double(), *calls)
    assert captured.kinds[0].partial is not None
    assert captured.kinds[0].mixing == ()
