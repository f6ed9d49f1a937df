"""Policies on families with other streams than SkyReels-V2's: no line of mccompile knows any of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.fresh import prompt_inputs
from mccompile.runtime.trace import share_computed
from tests.zoo import Call, Family, Size, tokens_of, zoo
from tests.zoo_more import MORE

STEPS = 6
GRID = Grid(STEPS, tuple(900.0 - 150 * i for i in range(STEPS)), tuple(0.9 - 0.15 * i for i in range(STEPS)))
NAMES = ("wan", "wan_per_token_time", "hunyuan", "cogvideox", "ltx", "flux")

TOKENS = """policy tokens {
  param part = 40% in 0%..100%
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for 2 steps { compute }
  phase fine               { compute top part of tokens by motion }
  layers blocks[*] { keep residual }
}
"""
STEPWISE = """policy steps {
  phase warmup for 1 step { compute }
  phase rest              { compute every 2 steps }
  layers blocks[*] { keep residual }
}
"""


def _placed() -> Family:
    """LTX told the coordinates of every token, as with conditions, in place of the sizes of the video."""
    ltx = zoo("ltx")

    def inputs(size: Size, batch: int) -> Call:
        call = {k: v for k, v in ltx.inputs(size, batch).items() if k not in ("num_frames", "height", "width")}
        return call | {"video_coords": torch.rand(batch, 3, tokens_of(size)) * 20}

    return replace(ltx, name="ltx_placed", inputs=inputs)


@cache
def captured(name: str) -> tuple[Family, torch.nn.Module, api.Prepared]:
    more = {family.name: family for family in (*MORE, _placed())}
    family = more[name] if name in more else zoo(name)
    model = family.model(torch.float32)
    one, two, _ = family.sizes
    prepared = api.prepare(
        model, probe=family.call(one, dtype=torch.float32), second=family.call(two, dtype=torch.float32)
    )
    return family, model, prepared


def run(name: str, policy: str, batch: int = 1, **parameters: float):
    """The policy's outputs and events over a few steps of random latents and one prompt, at a size new to capture."""
    family, model, prepared = captured(name)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    text = Source("test.policy", policy) if "{" in policy else policy
    compiled = api.compile(model, text, captured=prepared, clock=clock, backend="eager", **parameters)
    first = family.call(family.sizes[2], batch, torch.float32)
    prompt = {name: first[name] for name in prompt_inputs(prepared.model)}
    outputs, wanted = [], []
    for step in range(STEPS):
        clock.row = step
        call = family.call(family.sizes[2], batch, torch.float32, seed=step) | prompt
        with torch.no_grad():
            outputs.append(_first(compiled(**call)))
            wanted.append(_first(model(**call)))
    return outputs, wanted, compiled


def _first(result: object) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result.sample  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_selected_tokens_run_on_every_family(name: str) -> None:
    """All tokens selected: the model's own output. Some: finite, and no more work than asked for."""
    outputs, wanted, compiled = run(name, TOKENS, part=1.0)
    assert compiled.runner.engine.uses_rows
    for out, want in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
    outputs, wanted, compiled = run(name, TOKENS, part=0.4)
    assert share_computed(compiled.events) == pytest.approx((2 + 4 * 0.4) / STEPS, abs=0.02)
    assert all(torch.isfinite(out).all() for out in outputs)
    assert not torch.allclose(outputs[-1], wanted[-1], atol=1e-4)


@pytest.mark.parametrize("name", NAMES[:4])
def test_what_is_kept_in_float8_stays_near_on_every_family(name: str) -> None:
    """All tokens selected: only the rounding of kept keys and values is left, text joined to the video or apart."""
    kept = TOKENS.replace("layers", "cache { dtype: float8 }\n  layers")
    outputs, wanted, compiled = run(name, kept, part=1.0)
    stores = [s for r in compiled.runner.requests.values() for s in r.branches.values()]
    assert all(t.dtype == torch.uint8 for s in stores for buffers in s.memory.buffers.values() for t in buffers)
    errors = [((out - want).norm() / want.norm()).item() for out, want in zip(outputs, wanted, strict=True)]
    assert 0 < max(errors) < 0.1


@pytest.mark.parametrize("name", ["ltx", "sana_video"])
def test_samples_that_select_differently_are_what_each_is_alone(name: str) -> None:
    """LTX makes a mask for every head of every sample once per prompt: it is made for each sample alone.

    Sana-Video folds frames into the samples: its blocks count both together.
    """
    family, model, prepared = captured(name)
    policy = Source("test.policy", TOKENS)
    clocks = [Timeline("run", GRID, steps_in_order(GRID)) for _ in range(3)]
    both, *alone = (api.compile(model, policy, captured=prepared, clock=c, backend="eager", part=0.4) for c in clocks)
    prompt = {name: family.call(family.sizes[2], 2, torch.float32)[name] for name in prompt_inputs(prepared.model)}
    own = [{name: value[i : i + 1] for name, value in prompt.items()} for i in range(2)]
    for step in range(4):
        for clock in clocks:
            clock.row = step
        call = family.call(family.sizes[2], 2, torch.float32, seed=step)
        together = _first(both(**call | prompt))
        for i, compiled in enumerate(alone):
            one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in call.items()}
            torch.testing.assert_close(together[i : i + 1], _first(compiled(**one | own[i])), rtol=1e-4, atol=1e-4)
    counts = [[e.computed for e in compiled.events if e.step == 3] for compiled in (both, *alone)]
    assert counts[0] == counts[1] + counts[2]


def test_tokens_without_a_known_grid_are_refused_and_decided_per_step() -> None:
    """Latents come flat, each token at a place of its own: nothing proves which of them are a frame."""
    outputs, wanted, compiled = run("ltx_placed", TOKENS, part=0.4)
    refused = compiled.runner.lowered.refusals
    assert any("decided per step" in r.reason for r in refused)
    assert {e.action for e in compiled.events} <= {"full", "reuse"}
    for out, want, event in zip(outputs, wanted, compiled.events, strict=True):
        assert torch.allclose(out, want, rtol=1e-4, atol=1e-4) == (event.action == "full")


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_reused_on_every_family(name: str) -> None:
    outputs, wanted, compiled = run(name, STEPWISE)
    computed = [e.action == "full" for e in compiled.events]
    assert computed == [True, True, False, True, False, True]
    for out, want, whole in zip(outputs, wanted, computed, strict=True):
        assert torch.allclose(out, want, rtol=1e-4, atol=1e-4) == whole


@pytest.mark.parametrize("name", NAMES)
def test_compute_is_bit_equal_on_every_family(name: str) -> None:
    outputs, wanted, _ = run(name, "compute")
    assert all(torch.equal(out, want) for out, want in zip(outputs, wanted, strict=True))


def test_the_modulated_input_decides_on_flux() -> None:
    """TeaCache's indicator on FLUX is read from inside block 0, and grows an account that fires."""
    policy = """policy p {
      signal drift = rel_l1(modulated_input)
      phase one for 1 step { compute }
      phase rest           { reuse chunk while accumulate(drift) < 1.5 }
      layers blocks[*] { keep residual }
    }"""
    _, _, compiled = run("flux", policy)
    actions = [e.action for e in compiled.events]
    assert actions[0] == "full"
    assert {"full", "reuse"} == set(actions)


def test_a_probe_of_the_first_block_decides() -> None:
    """FBCache: unchanged inputs are reused, changed ones computed."""
    family, model, prepared = captured("wan")
    clock = Timeline("run", GRID, steps_in_order(GRID))
    compiled = api.compile(model, "fbcache", captured=prepared, clock=clock, backend="eager")
    for step, seed in enumerate((0, 0, 1, 1, 2, 3)):
        clock.row = step
        compiled(**family.call(family.sizes[2], 1, torch.float32, seed=seed))
    assert [e.action for e in compiled.events] == ["full", "reuse", "full", "reuse", "full", "full"]
