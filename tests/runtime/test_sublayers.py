"""Sublayers of blocks decide apart: the same as the model's own modules, run by hand at the steps of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
from torch import nn

from mccompile import compile
from mccompile.diagnostics.source import Source
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.runtime.conftest import Tiny
from tests.runtime.test_calls import DIM, GRID, call
from tests.runtime.test_laws import compiled

APART = """policy apart {
  phase first for 2 steps { compute }
  phase late              { attn: compute every 2 steps
                            cross: compute every 3 steps
                            ffn: compute every 4 steps }
  layers attn  = blocks[*].attn { keep KEEP }
  layers cross = blocks[*].cross { keep KEEP }
  layers ffn   = blocks[*].ffn { keep KEEP }
  chunks { pending: compute  finished: compute }
}
"""
COMPUTED = {"attn": {0, 1, 2, 4, 6, 8}, "cross": {0, 1, 2, 5, 8}, "ffn": {0, 1, 2, 6}}  # of 10 steps
MODULES = {"attn": "attn1", "cross": "attn2", "ffn": "ffn"}


ALIGNED = 2e-5
"""MKL sums in another order where operands lie otherwise in memory; with AVX2 the results are bit-equal."""


class Kept:
    """Stands in for a module of a block: its own result at some steps, and what it gave last at the others."""

    def __init__(self, own: Callable[..., torch.Tensor], computed: set[int]) -> None:
        self.own, self.computed = own, computed
        self.calls, self.kept = 0, dict[int, torch.Tensor]()

    def __call__(self, *given: object, **named: object) -> torch.Tensor:
        step, branch = divmod(self.calls, 2)  # a step calls the model once with and once without the prompt
        self.calls += 1
        if step in self.computed:
            self.kept[branch] = self.own(*given, **named)
        return self.kept[branch]


@contextmanager
def keeping_modules(blocks: nn.ModuleList, computed: dict[str, set[int]]) -> Iterator[None]:
    modules = [(block.get_submodule(MODULES[name]), steps) for block in blocks for name, steps in computed.items()]
    for module, steps in modules:
        module.forward = Kept(module.forward, steps)  # type: ignore[method-assign]
    yield
    for module, _ in modules:
        del module.forward


def test_the_output_of_each_sublayer_is_computed_at_its_own_steps(tiny: Tiny) -> None:
    with keeping_modules(tiny.pipe.transformer.blocks, COMPUTED):
        expected = tiny.run(ar_step=0)
    model = compiled(tiny, APART.replace("KEEP", "output"))
    torch.testing.assert_close(tiny.run(ar_step=0), expected, rtol=0, atol=ALIGNED)
    for name, steps in COMPUTED.items():
        assert {e.step for e in model.events if e.region == name and e.action == "full"} == steps


class Residuals:
    """Runs the blocks of SkyReels-V2 by hand, as they are written, and keeps what each part adds to the stream."""

    def __init__(self, computed: dict[str, set[int]], blocks: nn.ModuleList) -> None:
        self.computed, self.last = computed, blocks[-1]
        self.calls, self.kept = 0, dict[tuple[nn.Module, str, int], torch.Tensor]()

    def add(self, block: nn.Module, part: str, x: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        step, branch = divmod(self.calls, 2)
        if step in self.computed[part]:
            self.kept[block, part, branch] = make()
        return x + self.kept[block, part, branch]

    def forward(self, block: nn.Module, x: torch.Tensor, text: torch.Tensor, temb: torch.Tensor, rotary, mask):
        scaled = block.scale_shift_table.unsqueeze(2) + temb if temb.dim() == 4 else block.scale_shift_table + temb
        shift, scale, gate, shift2, scale2, gate2 = (
            part.squeeze(1) if temb.dim() == 4 else part for part in scaled.chunk(6, dim=1)
        )
        own = lambda: block.attn1(block.norm1(x) * (1 + scale) + shift, None, mask, rotary) * gate  # noqa: E731
        x1 = self.add(block, "attn", x, own)
        x2 = self.add(block, "cross", x1, lambda: block.attn2(block.norm2(x1), text, None, None))
        out = self.add(block, "ffn", x2, lambda: block.ffn(block.norm3(x2) * (1 + scale2) + shift2) * gate2)
        self.calls += block is self.last
        return out


def test_the_residual_of_each_sublayer_is_computed_at_its_own_steps(tiny: Tiny) -> None:
    blocks = tiny.pipe.transformer.blocks
    by_hand = Residuals(COMPUTED, blocks)
    for block in blocks:
        block.forward = partial(by_hand.forward, block)
    expected = tiny.run(ar_step=0)
    for block in blocks:
        del block.forward
    compiled(tiny, APART.replace("KEEP", "residual"))
    torch.testing.assert_close(tiny.run(ar_step=0), expected, rtol=0, atol=2e-5)  # (x + r) - x is r but for rounding


def test_pyramid_attention_broadcast_is_that_of_diffusers(tiny: Tiny) -> None:
    """One branch: the hook counts calls. The window begins at a step at which both compute."""
    call = {"ar_step": 0, "guidance_scale": 1.0}
    own = tiny.pipe.transformer
    seen: list[float] = []
    watch = own.register_forward_pre_hook(
        lambda _, args, named: seen.append(float(named["timestep"].flatten()[0])), with_kwargs=True
    )
    stock = tiny.run(**call)
    timesteps, first, last = list(seen), 4, 8
    low, high = (timesteps[last] + timesteps[last - 1]) / 2, (timesteps[first] + timesteps[first - 1]) / 2
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, cross_attention_block_skip_range=4,
        spatial_attention_timestep_skip_range=(low, high), cross_attention_timestep_skip_range=(low, high),
        spatial_attention_block_identifiers=("blocks",), cross_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: seen[-1],
    )  # fmt: skip
    apply_pyramid_attention_broadcast(own, config)
    expected = tiny.run(**call)
    for module in own.modules():
        if hasattr(module, "_diffusers_hook"):
            module._diffusers_hook.remove_hook("pyramid_attention_broadcast")
    watch.remove()
    rules = "attn: compute every own steps cross: compute every text steps"
    text = f"policy w extends pab {{ phase broadcast while {low} <= timestep < {high} {{ {rules} }} }}"
    model = compiled(tiny, text, own=2, text=4)
    torch.testing.assert_close(tiny.run(**call), expected, rtol=0, atol=ALIGNED)
    assert float((stock - expected).abs().max()) > 100 * ALIGNED
    reused = {(e.region, e.step) for e in model.events if e.action == "reuse"}
    assert reused == {*(("attn", step) for step in (5, 7)), *(("cross", step) for step in (5, 6, 7))}


TOKENS = """policy tokens {
  signal drift = rel_l1(latent, over = token)
  phase first for 2 steps { compute }
  phase late              { attn: reuse token while accumulate(drift) < 0.5
                            ffn: compute top 40% of tokens by drift }
  layers attn = blocks[*].attn { keep KEEP }
  layers ffn  = blocks[1..].ffn { keep KEEP }
  chunks { pending: skip  finished: refresh }
}
"""


def test_tokens_of_sublayers_run_from_the_first_call_on(tiny: Tiny) -> None:
    """Chunks enter one after the other, so that at first only some rows of what is kept exist."""
    videos = []
    for keep in ("residual", "output"):
        model = compiled(tiny, TOKENS.replace("KEEP", keep))
        videos.append(tiny.run())
        kinds = {(e.region, e.action) for e in model.events}
        assert {("attn", "partial"), ("ffn", "partial"), ("attn", "skip")} <= kinds
        tiny.pipe.transformer = model.undo()
    assert all(torch.isfinite(video).all() for video in videos)


class GatedBlock(nn.Module):
    """Attention under a gate that follows the timestep, cast behind the gate as models in half precision do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return x + (self.attention(x) * gate).to(torch.float64).to(torch.float32)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([GatedBlock(), GatedBlock()])

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, t[:, None, None] * 0.01 + text.mean(1, keepdim=True))
        return x


def test_an_output_is_kept_from_before_its_gate_whatever_is_cast_behind_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gated().eval().requires_grad_(False)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    text = "policy p { phase all { compute every 2 steps } layers blocks[*].attn { keep output } }"
    compiled_ = compile(model, Source("p", text), probe=call(6), second=call(10), clock=clock, backend="eager")  # type: ignore[arg-type]
    kept = []
    for row in (0, 1):
        clock.row = row
        given = call(8, row)
        gate, x = given["t"][:, None, None] * 0.01 + given["text"].mean(1, keepdim=True), given["x"]
        for number, block in enumerate(model.blocks):
            kept += [block.attention(x)] if row == 0 else []  # type: ignore[operator]
            x = x + kept[number] * gate
        torch.testing.assert_close(compiled_(**given), x)
    assert {e.action for e in compiled_.events if e.row == 1} == {"reuse"}
