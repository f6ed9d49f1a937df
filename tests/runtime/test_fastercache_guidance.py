"""FasterCache whole, attention and guidance in one policy: against its rule by hand, and against diffusers' hooks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import FasterCacheConfig, WanTransformer3DModel, apply_faster_cache

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.groups import bounds_of
from mccompile.policy.planner import plan
from mccompile.policy.prove import NOTHING
from mccompile.policy.reasons import reasons
from mccompile.policy.within import plans_within, reasons_within
from tests.runtime.test_branch_rules import ORDER, Calls, agree, compiled, run
from tests.runtime.test_forecast import GRID, STEPS, call

Outputs = dict[tuple[int, str], torch.Tensor]
SIZES = {"frames": 3, "height": 12, "width": 20}  # a circle of two waves, on frames that are no squares


def low_frequencies(x: torch.Tensor, radius: int) -> torch.Tensor:
    """Of each frame of [B, C, F, H, W], the waves within a circle: sums of cosines and sines, one by one."""
    height, width = x.shape[-2:]
    y, x_ = np.mgrid[:height, :width]
    found = torch.zeros_like(x)
    for i in range(-(height // 2), (height + 1) // 2):
        for j in range(-(width // 2), (width + 1) // 2):
            if i * i + j * j <= radius * radius:
                angle = 2 * np.pi * (i * y / height + j * x_ / width)
                for wave in (torch.from_numpy(np.cos(angle)).float(), torch.from_numpy(np.sin(angle)).float()):
                    found += (x * wave).mean((-2, -1), keepdim=True) * wave
    return found


class Attention:
    """Stands in for an attention module: its own output, or what its last two computations have become."""

    def __init__(self, own: Callable[..., torch.Tensor], ahead: Callable[[], float | None]) -> None:
        self.own, self.ahead = own, ahead
        self.kept: list[torch.Tensor] = []

    def __call__(self, *given: object, **named: object) -> torch.Tensor:
        weight = self.ahead()
        if weight is not None:
            return self.kept[-1] + weight * (self.kept[-1] - self.kept[-2])
        self.kept.append(self.own(*given, **named))
        return self.kept[-1]


def fastercache(model: WanTransformer3DModel, interval: int, guidance: int) -> tuple[Outputs, dict[str, list[int]]]:
    """The paper's rule, one call a branch. Returns the outputs, and the steps of cond's attention and of uncond."""
    now: dict[str, float | None] = {"weight": None}
    blocks = model.blocks
    for block in blocks:
        block.attn1.forward = Attention(block.attn1.forward, lambda: now["weight"])  # type: ignore[method-assign]
    found: Outputs = {}
    done: dict[str, list[int]] = {"attn": [], "uncond": []}
    begun = next(step for step in range(STEPS) if GRID.timesteps[step] < 681)
    gap, low, high, since = torch.zeros(0), 1.0, 1.0, 0
    for step in range(STEPS):
        skips = step >= begun and (step - begun) % interval != 0
        now["weight"] = step / STEPS if skips else None
        done["attn"] += [] if skips else [step]
        found[step, "cond"] = model(**call(step, **SIZES))[0]
        now["weight"] = None
        since += 1
        timestep = GRID.timesteps[step]
        if timestep < 641 and since < guidance:
            low *= 1.1 if 99 <= timestep < 901 else 1.0
            high *= 1.1 if timestep < 301 else 1.0
            below = low_frequencies(gap, 2)
            found[step, "uncond"] = found[step, "cond"] + low * below + high * (gap - below)
            continue
        own = [block.attn1.forward.kept[:] for block in blocks]  # type: ignore[union-attr]
        found[step, "uncond"] = model(**call(step, 1, **SIZES))[0]
        for block, kept in zip(blocks, own, strict=True):
            block.attn1.forward.kept = kept  # type: ignore[union-attr]
        gap, low, high, since = found[step, "uncond"] - found[step, "cond"], 1.0, 1.0, 0
        done["uncond"].append(step)
    for block in blocks:
        del block.attn1.forward
    return found, done


def ours(
    model: WanTransformer3DModel, prepared: api.Prepared, policy: str | Source, **more: float
) -> tuple[Outputs, dict[str, list[int]]]:
    made, clock = compiled(model, prepared, policy, **more)
    calls: Calls = tuple((row, branch) for row in range(STEPS) for branch in ORDER)
    found: Outputs = {}
    for row, branch in calls:
        clock.row = row
        with made.cache_context(branch):
            found[row, branch] = made(**call(row, ORDER.index(branch), **SIZES))[0]
    full = [e for e in made.events if e.action == "full"]
    assert {e.why for e in made.events if (e.branch, e.region, e.action) == ("uncond", "attn", "reuse")} == {
        "the model's output stands in"
    }
    return found, {
        "attn": [e.step for e in full if (e.branch, e.region) == ("cond", "attn")],
        "uncond": [e.step for e in full if (e.branch, e.region) == ("uncond", "whole")],
    }


@pytest.mark.parametrize(("interval", "guidance"), [(2, 3), (3, 5), (2, 2)])
def test_fastercache(
    interval: int, guidance: int, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    found, done = ours(small_wan, captured_wan, "fastercache", interval=interval, guidance=guidance)
    with torch.no_grad():
        wanted, expected = fastercache(small_wan, interval, guidance)
    assert done == expected
    assert len(done["attn"]) < STEPS > len(done["uncond"])
    agree(found, wanted)
    plain = run_plainly(small_wan)
    assert max(float((found[at] - plain[at]).abs().max()) for at in found) > 0.01


def run_plainly(model: WanTransformer3DModel) -> Outputs:
    with torch.no_grad():
        return {(r, b): model(**call(r, ORDER.index(b), **SIZES))[0] for r in range(STEPS) for b in ORDER}


AS_DIFFUSERS = """
policy as_diffusers extends fastercache {
  phase early while timestep >= 700 { compute }
  phase late {
    attn:         reuse chunk while remainder(step, 2) >= 1 and remainder(step, 3) >= 1
    uncond.whole: reuse chunk while remainder(step, 3) >= 1
  }
  layers attn = blocks[*].attn {
    keep output  reuse as before(output) + 0.5 * (before(output) - before(before(output)))
  }
  layers whole = model {
    keep gap  reuse as low / kept(low) * low_pass(kept(gap)) + high / kept(high) * high_pass(kept(gap))
  }
}
"""


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_the_hooks_of_diffusers(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Both branches in one batch there, one after the other here: the same outputs.

    Its hooks count calls, compute attention whenever both branches run, and go on from what stood in.
    """
    found, done = ours(small_wan, captured_wan, Source("p.policy", AS_DIFFUSERS))
    assert done == {"attn": [0, 1, 2, 3, 4, 6, 8], "uncond": [0, 1, 2, 3, 6]}
    now = [0.0]
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 700),
        unconditional_batch_skip_range=3, unconditional_batch_timestep_skip_range=(-1, 700),
        spatial_attention_block_identifiers=("blocks.*attn1",), attention_weight_callback=lambda _: 0.5,
        current_timestep_callback=lambda: now[0], tensor_format="BCFHW",
    )  # fmt: skip
    apply_faster_cache(small_wan, config)
    wanted: Outputs = {}
    with torch.no_grad():
        for step in range(STEPS):
            now[0] = GRID.timesteps[step]
            cond, uncond = call(step, **SIZES), call(step, 1, **SIZES)
            names = ("hidden_states", "timestep", "encoder_hidden_states")
            both = {name: torch.cat([uncond[name], cond[name]]) for name in names}  # type: ignore[list-item]
            wanted[step, "uncond"], wanted[step, "cond"] = small_wan(**both, return_dict=False)[0].split(1)
    for module in small_wan.modules():
        if "_diffusers_hook" in vars(module):
            for name in ("faster_cache_denoiser", "faster_cache_block"):
                module._diffusers_hook.remove_hook(name, recurse=False)
    agree(found, wanted)


WITHIN = """policy within {
  signal moved = rel_l1(latent, kept(latent))
  phase first for 2 steps { compute }
  phase late {
    front:        compute every 3 steps
    uncond.whole: reuse chunk while moved < 0.2
  }
  layers front = blocks[0] { keep residual }
  layers whole = model { keep residual  reuse as 0.9 * kept(residual) }
}
"""


def test_data_decides_about_the_model_around_blocks(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """The first block is reused in one branch, and the weighted residual of the model in the other one."""
    made, clock = compiled(small_wan, captured_wan, Source("p.policy", WITHIN))
    found = run(made, clock)
    wanted: Outputs = {}
    first, seen, given = small_wan.blocks[0], dict[str, torch.Tensor](), torch.zeros(0)
    residual, latent = torch.zeros(0), torch.zeros(0)
    computed: list[int] = []
    with torch.no_grad():
        for step in range(STEPS):
            if step < 2 or (step - 2) % 3 == 0:
                watch = first.register_forward_hook(lambda _, came, left: seen.update(added=left - came[0]))
                wanted[step, "cond"] = small_wan(**call(step))[0]
                watch.remove()
            else:
                watch = first.register_forward_hook(lambda _, came, left: came[0] + seen["added"])
                wanted[step, "cond"] = small_wan(**call(step))[0]
                watch.remove()
            given = call(step, 1)["hidden_states"]  # type: ignore[assignment]
            if step >= 2 and float((given - latent).abs().mean() / latent.abs().mean()) < 0.2:
                wanted[step, "uncond"] = given + 0.9 * residual
                continue
            wanted[step, "uncond"] = small_wan(**call(step, 1))[0]
            residual, latent = wanted[step, "uncond"] - given, given
            computed.append(step)
    agree(found, wanted)
    assert 2 < len(computed) < STEPS
    assert [e.step for e in made.events if (e.branch, e.region, e.action) == ("uncond", "front", "full")] == computed


def test_what_is_foreseen_of_layers_within_the_model() -> None:
    """Where the model is reused its layers do not run, and where data decides about it, it decides about them."""
    for text, actions in ((AS_DIFFUSERS, {"compute", "reuse"}), (WITHIN, {"compute", "dynamic"})):
        policy = load_policy(Source("p.policy", text))
        bounds = bounds_of(bind(policy, {}))
        plans = plans_within(policy, {view: plan(bound, GRID, {}, frozenset()) for view, bound in bounds.items()})
        why = reasons_within(policy, {view: reasons(bound, GRID, NOTHING) for view, bound in bounds.items()})
        inner = next(view for view in plans if view.startswith("uncond") and view != "uncond whole")
        assert [c.action for c in plans[inner].cells] == [c.action for c in plans["uncond whole"].cells]
        assert {c.action for c in plans[inner].cells} == actions
        assert [r.action for r in why[inner]] == [c.action for c in plans[inner].cells]
