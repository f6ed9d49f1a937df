"""FasterCache's attention alone: against its rule on the model's own modules by hand, and against diffusers' hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers import FasterCacheConfig, apply_faster_cache

from tests.runtime.conftest import Tiny
from tests.runtime.test_laws import compiled
from tests.runtime.test_sublayers import ALIGNED

FIRST, STEPS = 4, 10  # from this step on every second one is computed


class Continued:
    """Stands in for an attention module: its own output at some steps, and what its last two have become between."""

    def __init__(self, own: Callable[..., torch.Tensor], branches: int) -> None:
        self.own, self.branches, self.calls = own, branches, 0
        self.kept: list[list[torch.Tensor]] = [[] for _ in range(branches)]

    def __call__(self, *given: object, **named: object) -> torch.Tensor:
        step, branch = divmod(self.calls, self.branches)
        self.calls += 1
        kept = self.kept[branch]
        if step < FIRST or (step - FIRST) % 2 == 0:
            kept.append(self.own(*given, **named))
            return kept[-1]
        return kept[-1] + (kept[-1] - kept[-2]) * step / STEPS


@contextmanager
def continued(tiny: Tiny, branches: int) -> Iterator[None]:
    modules = [block.attn1 for block in tiny.pipe.transformer.blocks]
    for module in modules:
        module.forward = Continued(module.forward, branches)  # type: ignore[method-assign]
    yield
    for module in modules:
        del module.forward


def timesteps(tiny: Tiny) -> list[float]:
    """Of the steps of a run of the stock pipeline."""
    seen: list[float] = []
    watch = tiny.pipe.transformer.register_forward_pre_hook(
        lambda _, args, named: seen.append(float(named["timestep"].flatten()[0])), with_kwargs=True
    )
    tiny.run(ar_step=0, guidance_scale=1.0)
    watch.remove()
    assert len(seen) == STEPS
    return seen


AHEAD = "kept(output) + ahead * (kept(output) - kept(output, 2))"


def late_from(limit: float, stands: str = AHEAD) -> str:
    return f"""policy w extends fastercache {{
      phase early while timestep >= {limit} {{ compute }}
      phase late {{ compute every interval steps }}
      layers blocks[*].attn {{ keep output  reuse as {stands} }}
    }}"""


def test_fastercache(tiny: Tiny) -> None:
    """With guidance: each branch goes on from its own outputs."""
    seen = timesteps(tiny)
    with continued(tiny, 2):
        expected = tiny.run(ar_step=0)
    model = compiled(tiny, late_from((seen[FIRST] + seen[FIRST - 1]) / 2))
    torch.testing.assert_close(tiny.run(ar_step=0), expected, rtol=0, atol=ALIGNED)
    assert {e.step for e in model.events if e.action == "reuse"} == {5, 7, 9}


def test_fastercache_of_diffusers_goes_on_from_what_stood_in(tiny: Tiny) -> None:
    """Its hook keeps the last two outputs, computed or not; the policy that says so has the same outputs.

    One branch: with two in one batch the hook also forecasts the unconditional one.
    """
    seen, own = timesteps(tiny), tiny.pipe.transformer
    limit = (seen[FIRST] + seen[FIRST - 1]) / 2
    call = {"ar_step": 0, "guidance_scale": 1.0}
    stock, now = tiny.run(**call), [0.0]
    watch = own.register_forward_pre_hook(
        lambda _, args, named: now.append(float(named["timestep"].flatten()[0])), with_kwargs=True
    )
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, limit),
        spatial_attention_block_identifiers=("blocks.*attn1",), attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True, current_timestep_callback=lambda: now[-1], tensor_format="BCFHW",
    )  # fmt: skip
    apply_faster_cache(own, config)
    expected = tiny.run(**call)
    watch.remove()
    for module in own.modules():
        if hasattr(module, "_diffusers_hook"):
            for name in ("faster_cache_denoiser", "faster_cache_block"):
                module._diffusers_hook.remove_hook(name, recurse=False)
    model = compiled(tiny, late_from(limit, "before(output) + 0.5 * (before(output) - before(before(output)))"))
    torch.testing.assert_close(tiny.run(**call), expected, rtol=0, atol=1e-4)
    assert float((stock - expected).abs().max()) > 1e-3
    assert {e.step for e in model.events if e.action == "reuse"} == {5, 7, 9}
    tiny.pipe.transformer = model.undo()
    compiled(tiny, late_from(limit), weight=0.5)
    assert float((tiny.run(**call) - expected).abs().max()) > 1e-4  # the paper's own rule is another one
