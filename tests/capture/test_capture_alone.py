"""Models whose forward cannot be captured whole: their blocks run as their own code, and policies decide per step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mccompile import CompiledModel, compile
from mccompile.api import Prepared, prepare
from mccompile.backend.compiled_roles import CompiledRoles
from mccompile.bundles.bundle import save_bundle
from mccompile.bundles.bundle_errors import UnbundledRole
from mccompile.capture import CaptureError, TokenGrid, capture_batched
from mccompile.diagnostics.source import Source
from mccompile.generate.flops import prices_of
from mccompile.lowering.errors import SourceNotFound
from mccompile.pipelines.errors import PipelineError
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order

DIM, STEPS = 8, 4
GRID = Grid(STEPS, (900.0, 600.0, 300.0, 100.0), (0.9, 0.6, 0.3, 0.1))
EVERY_SECOND = """policy second {
  phase rest { compute every 2 steps }
  layers blocks[*] { keep residual }
}
"""
FIRST_BLOCK = """policy first {
  signal drift = rel_l1(probe, over = step)
  phase warmup for 1 step { compute }
  phase rest { reuse step while drift < 0.0001 }
  layers blocks[0] { compute }
  layers blocks[1..-1] { keep residual }
}
"""
TOP = """policy top {
  signal motion = frame_diff(block_output)
  phase warmup for 2 steps { compute }
  phase rest { compute top 30% of tokens by motion }
  layers blocks[*] { keep residual }
}
"""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.text = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor, text: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.qkv(torch.cat([text, x], 1)).chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + scale * seen[:, text.shape[1] :], text + self.text(seen[:, : text.shape[1]])


class Branching(nn.Module):
    """Branches on the value of a tensor, which torch.export cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv3d(2, DIM, (1, 2, 2), (1, 2, 2)), nn.Linear(DIM, 8)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        if float(timestep.max()) > 500:
            x = x * 0.5
        for block in self.blocks:
            x, text = self.apart(block, x, text)
        return self.head(x + text.mean(1, keepdim=True))

    def apart(self, block: nn.Module, x: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return block(x, text, scale=0.5)  # type: ignore[no-any-return]


class Between(Branching):
    """Does something between its blocks."""

    def apart(self, block: nn.Module, x: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, text = block(x * 1.25, text)
        return x, text


class Told(Branching):
    """Gives its blocks an object of its own, a new one in each call."""

    def apart(self, block: nn.Module, x: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return block(x, text, scale=Factor(0.5))  # type: ignore[no-any-return]


class Factor:
    """A number in disguise."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __mul__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * self.value


class Overwriting(Branching):
    """Writes into what its blocks are given."""

    def apart(self, block: nn.Module, x: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return block(x, text.mul_(2))  # type: ignore[no-any-return]


class Carrying(Branching):
    """Passes from block to block what no block returns."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        if float(timestep.max()) > 500:
            x = x * 0.5
        means = []
        for block in self.blocks:
            x, text = block(x, text)
            means.append(x.mean())
        return self.head(x * sum(means))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Padded(Branching):
    """Pads its tokens to one number, as HiDream does. Its longest list works on the text alone."""

    def __init__(self) -> None:
        super().__init__()
        self.captions = nn.ModuleList(Residual() for _ in range(5))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        tokens = x.shape[1]
        x = F.pad(x, (0, 0, 0, 96 - tokens))
        if float(timestep.max()) > 500:
            x = x * 0.5
        for caption in self.captions:
            text = caption(text)
        for block in self.blocks:
            x, text = block(x, text, scale=0.5)
        return self.head(x[:, :tokens])  # type: ignore[no-any-return]


def call(frames: int, height: int, width: int, samples: int = 1, step: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    latent = torch.randn(samples, 2, frames, height, width, generator=generator)
    text = torch.randn(samples, 3, DIM, generator=torch.Generator().manual_seed(99))
    return {"hidden_states": latent, "timestep": torch.full((samples,), GRID.timesteps[step]), "text": text}


@cache
def prepared(kind: type[Branching]) -> tuple[Branching, Prepared]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().eval().requires_grad_(False)
    return model, prepare(model, probe=call(4, 4, 6), second=call(6, 6, 10))


def run(
    kind: type[Branching], policy: str, samples: int = 1, inputs: Callable[[int], int] = int
) -> tuple[list[torch.Tensor], list[torch.Tensor], CompiledModel]:
    """Outputs of the compiled model and of the model itself at every step; inputs: which latents a step has."""
    model, captured = prepared(kind)
    text = Source("test.policy", policy) if "{" in policy else policy
    clock = Timeline("run", GRID, steps_in_order(GRID))
    compiled = compile(model, text, captured=captured, clock=clock)  # type: ignore[arg-type]
    found, own = [], []
    for clock.row in range(STEPS):
        given = call(5, 6, 8, samples, inputs(clock.row)) | {"timestep": torch.full((samples,), 100.0)}
        found.append(compiled(**given))
        own.append(model(**given))
    return found, own, compiled


@pytest.mark.parametrize("kind", [Branching, Between, Told])
@pytest.mark.parametrize("samples", [1, 2])
def test_what_computes_everything_is_the_model_itself(kind: type[Branching], samples: int) -> None:
    found, own, compiled = run(kind, "compute", samples)
    assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))
    captured = compiled.captured
    assert [site.path for site in captured.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert captured.grid == TokenGrid("hidden_states", (2, 3, 4), (1, 2, 2))
    assert "cannot be exported" in captured.opaque
    assert captured.refusals[0].reason == captured.opaque


@pytest.mark.parametrize(("kind", "factor"), [(Branching, 1.0), (Between, 1.25), (Told, 1.0)])
def test_a_step_that_reuses_adds_what_the_blocks_added_before(kind: type[Branching], factor: float) -> None:
    found, own, compiled = run(kind, EVERY_SECOND)
    assert [event.action for event in compiled.events] == ["full", "reuse", "full", "reuse"]
    model, _ = prepared(kind)
    latents = [call(5, 6, 8, 1, step)["hidden_states"] for step in range(2)]
    entered = [factor * model.patch(latent).flatten(2).transpose(1, 2) for latent in latents]
    added = model.head(entered[0]) - own[0]  # the head is linear
    assert torch.equal(found[0], own[0])
    assert not torch.allclose(found[1], own[1], atol=1e-4)
    assert torch.allclose(found[1], model.head(entered[1]) - added, atol=1e-5)


def test_blocks_of_tokens_that_are_padded_to_one_number_are_those_that_the_latent_reaches() -> None:
    found, own, compiled = run(Padded, "compute")
    assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))
    assert [site.path for site in compiled.captured.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    found, own, compiled = run(Padded, EVERY_SECOND)
    assert [event.action for event in compiled.events] == ["full", "reuse", "full", "reuse"]
    model, _ = prepared(Padded)
    one, two = (model.patch(call(5, 6, 8, 1, step)["hidden_states"]).flatten(2).transpose(1, 2) for step in range(2))
    assert torch.allclose(found[1], own[0] + model.head(two) - model.head(one), atol=1e-5)


def test_the_first_block_decides_for_the_rest() -> None:
    """Steps in pairs of the same latents: the second of each pair is the first one's."""
    found, own, compiled = run(Branching, FIRST_BLOCK, inputs=lambda step: step // 2)
    assert [event.action for event in compiled.events] == ["full", "reuse", "full", "reuse"]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, own, strict=True))


def test_a_rule_by_tokens_is_refused_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """The policy can then only compute, and compiling says so."""
    found, own, compiled = run(Branching, TOP)
    assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))
    (refusal,) = [r for r in compiled.runner.lowered.refusals if "decided per step" in r.reason]
    assert "its blocks run as the model's own code" in refusal.reason
    said = [r.getMessage() for r in caplog.records if r.name == "mccompile"]
    assert any(text.startswith("policy top computes every step of this model and reuses nothing") for text in said)


def test_what_the_timestep_alone_makes_is_not_known() -> None:
    with pytest.raises(SourceNotFound, match="its blocks run as the model's own code"):
        run(Branching, "teacache")


@pytest.mark.parametrize(
    ("kind", "why"), [(Overwriting, "writes into its argument `text`, and gives"), (Carrying, "gives other outputs")]
)
def test_blocks_that_cannot_be_taken_alone_leave_the_first_error(kind: type[Branching], why: str) -> None:
    with torch.random.fork_rng(), pytest.raises(CaptureError, match="MC0401") as caught:
        capture_batched(kind().eval().requires_grad_(False), call(4, 4, 6), call(6, 6, 10))
    assert "Data-dependent" in str(caught.value) or "data-dependent" in caught.value.cause
    assert why in str(caught.value)


def test_what_writes_into_its_arguments_is_refused_before_it_is_captured() -> None:
    with pytest.raises(CaptureError, match="forward writes into its argument `text`"):
        prepared(Overwriting)


def test_work_is_counted_while_it_runs() -> None:
    """The parts count what the model counts, and once more the code around the blocks."""
    _, _, compiled = run(Branching, "compute")
    given = call(5, 6, 8)
    with FlopCounterMode(display=False) as counter:
        compiled.model(**given)
    prices = prices_of(compiled, given)
    counted = prices.first + prices.row + prices.each + sum(block.whole for block in prices.blocks)
    assert counter.get_total_flops() <= counted < 2 * counter.get_total_flops()


def test_a_budget_is_refused() -> None:
    policy = EVERY_SECOND.replace("layers", "cache { budget: 1 GiB }\n  layers")
    with pytest.raises(PipelineError, match="MC0720"):
        run(Branching, policy)


def test_no_bundle_holds_the_models_own_code() -> None:
    _, _, compiled = run(Branching, "compute")
    with pytest.raises(UnbundledRole, match="whose blocks are its own code"):
        save_bundle(None, compiled, CompiledRoles({}))  # type: ignore[arg-type]
