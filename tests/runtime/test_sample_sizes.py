"""Calls of several samples: what the graph counts for all of them, and what they share."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile import api
from mccompile.capture.errors import CallError
from mccompile.capture.types import SampleCount
from mccompile.diagnostics.source import Source
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from tests.model_table import GRID, STEPS, TOKENS

HEADS = 2


class _Block(nn.Module):
    """Attention over the tokens, then over the text, by hand: its mask is repeated for every head of every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.keys = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x + shift[:, None]).chunk(3, -1)
        )
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        bias = mask[:, None].repeat_interleave(HEADS, dim=0, output_size=mask.shape[0] * HEADS)
        keys = self.keys(text).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        seen = x.unflatten(-1, (HEADS, -1)).transpose(1, 2) @ keys.transpose(-1, -2)
        weights = (seen + bias.view(-1, HEADS, 1, mask.shape[1])).softmax(-1)
        return x + (weights @ keys).transpose(1, 2).flatten(2)


class _Model(nn.Module):
    """Its text and its mask are one for each sample, or one for all: both broadcast. mean: of all texts, so not."""

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.embed, self.mean = nn.Conv3d(4, 16, (1, 2, 2), (1, 2, 2)), mean
        self.time = nn.Linear(1, 16)
        self.blocks = nn.ModuleList([_Block(), _Block()])
        self.head = nn.Linear(16, 16)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        batch, _, frames, height, width = hidden_states.shape
        x = self.embed(hidden_states).flatten(2).transpose(1, 2)
        shift = self.time(timestep[:, None] / 1000)
        if self.mean and text.shape[0] < batch:
            text = 2 * text
        text, mask = text.expand(batch, -1, -1), mask.expand(batch, -1)
        for block in self.blocks:
            x = block(x, shift, text, mask)
        x = self.head(x).view(batch, frames, height // 2, width // 2, 4, 2, 2)
        return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(hidden_states.shape)


def call(size: tuple[int, int, int], samples: int, texts: int, step: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    text, mask = (torch.randn(texts, *rest, generator=generator) for rest in ((5, 16), (5,)))
    generator.manual_seed(step)
    latent = torch.randn(samples, 4, *size, generator=generator)
    return {"hidden_states": latent, "timestep": torch.full((samples,), 900.0 - step), "text": text, "mask": mask}


@cache
def prepared(mean: bool = False) -> tuple[nn.Module, api.Prepared]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Model(mean).eval().requires_grad_(False)
    return model, api.prepare(model, probe=call((4, 6, 14), 1, 1), second=call((6, 10, 22), 1, 1))


def compiled(policy: str, mean: bool = False, **parameters: float) -> CompiledModel:
    model, found = prepared(mean)
    clock, text = Timeline("run", GRID, steps_in_order(GRID)), Source("test.policy", policy)
    return api.compile(model, text, captured=found, clock=clock, backend="eager", **parameters)


def off(made: CompiledModel, samples: int, texts: int) -> list[float]:
    """How far each step of a run is from the model's own."""
    found = []
    for made.clock.row in range(STEPS):  # type: ignore[union-attr]
        given = call((5, 8, 10), samples, texts, made.clock.row)  # type: ignore[union-attr]
        with torch.no_grad():
            wanted = made.model(**given)
            found.append(float((made(**given) - wanted).abs().max() / wanted.abs().max()))
    return found


COMPUTE = "policy plain { phase all { compute } }"


def test_a_number_that_counts_heads_of_all_samples_is_cut_to_those_of_one() -> None:
    """Samples that choose their own tokens run one by one, and a mask for every head is made again for each."""
    assert SampleCount(HEADS) in {port.batch for port in prepared()[1].model.shared}
    made = compiled(TOKENS, part=0.4)
    distances = off(made, 2, 2)
    assert made.runner.engine.uses_rows
    assert distances[0] < 1e-5
    assert {event.sample for event in made.events} == {0, 1}
    assert any(event.action == "partial" for event in made.events)
    assert max(off(compiled(TOKENS), 2, 2)) < 1e-5  # all tokens one by one


@pytest.mark.parametrize("policy", [COMPUTE, TOKENS])
@pytest.mark.parametrize("samples", [2, 3])
def test_samples_may_share_a_text(policy: str, samples: int) -> None:
    assert max(off(compiled(policy), samples, 1)) < 1e-5


def test_a_shared_text_is_repeated_once_and_again_when_it_changes() -> None:
    made = compiled(COMPUTE)
    given = call((5, 8, 10), 2, 1)
    made.clock.row = 0  # type: ignore[union-attr]
    with torch.no_grad():
        made(**given)
        kept = made._sizes.taken(given)
        assert made._sizes.taken(given)["text"] is kept["text"]
        given["text"] += 1
        torch.testing.assert_close(made(**given), made.model(**given))
    assert made._sizes.taken(given)["text"] is not kept["text"]
    made.clear()
    assert not made._sizes._each._made


def test_a_shared_text_that_means_something_else_is_refused() -> None:
    """This model reads one text of several samples in another way, so it may not be repeated."""
    made = compiled(COMPUTE, mean=True)
    assert max(off(made, 2, 2)) < 1e-5
    with pytest.raises(CallError, match="`text` is repeated for each of 2 samples"):
        off(made, 2, 1)


class _TokensFirst(nn.Module):
    """Its stream is [tokens, samples, channels], as Ernie-Image has it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv3d(4, 16, (1, 2, 2), (1, 2, 2)), nn.Linear(16, 16)
        self.blocks = nn.ModuleList([_FirstBlock(), _FirstBlock()])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = self.embed(hidden_states).flatten(2).permute(2, 0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.transpose(0, 1))  # type: ignore[no-any-return]


class _FirstBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).transpose(0, 1).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(0, 1)


@pytest.mark.parametrize("samples", [1, 2])
def test_samples_behind_the_tokens_are_not_taken_for_the_tokens(samples: int) -> None:
    """An event is about one sample, and counts its tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _TokensFirst().eval().requires_grad_(False)
        probe, second = ({"hidden_states": torch.randn(1, 4, *size)} for size in ((3, 4, 6), (5, 6, 10)))
        given = {"hidden_states": torch.randn(samples, 4, 4, 6, 8)}
    clock = Timeline("run", GRID, steps_in_order(GRID))
    text = "policy every { phase rest { compute every 2 steps } layers blocks[*] { keep residual } }"
    policy = Source("t.policy", text)
    compiled = api.compile(model, policy, probe=probe, second=second, clock=clock, backend="eager")  # type: ignore[arg-type]
    for clock.row in range(2):
        found = compiled(**given)
        assert torch.allclose(found, model(**given), atol=1e-6)
    assert [(e.sample, e.action, e.tokens) for e in compiled.events] == [
        (sample, action, 48) for action in ("full", "reuse") for sample in range(samples)
    ]
