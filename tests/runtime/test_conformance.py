"""Our policies against the hooks of diffusers and against cache-dit as installed, on one small Wan.

Where a method is the same, outputs agree. Where a hook differs from its publication, a test states the difference.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig, WanTransformer3DModel

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.language.load import find_policy
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from tests.runtime.test_forecast import GRID, STEPS, call

RATIOS = (1.0, 1.01, 0.97, 0.95, 1.02, 0.96, 0.9, 0.97, 0.93)


def ours(
    model: WanTransformer3DModel, prepared: api.Prepared, policy: str, **values: float
) -> tuple[list[torch.Tensor], list[bool]]:
    """The outputs of a run, and which steps it computed."""
    clock = Timeline("request", GRID, steps_in_order(GRID))
    text = find_policy(policy)
    made: CompiledModel = api.compile(
        model, Source("p.policy", text.text), backend="eager", captured=prepared, clock=clock, **values
    )
    found = []
    for row in range(STEPS):
        clock.row = row
        found.append(made(**call(row))[0])
    return found, [event.action == "full" for event in made.events]


def theirs(model: WanTransformer3DModel, config: object) -> tuple[list[torch.Tensor], list[bool]]:
    """The outputs of a run under a hook, and in which steps the second block ran."""
    ran: list[int] = []
    row = 0
    body = model.blocks[1].attn1.to_q.register_forward_hook(lambda *_: ran.append(row))
    model.enable_cache(config)  # type: ignore[arg-type]
    found = []
    try:
        with model.cache_context("cond"):
            for row in range(STEPS):  # the hook reads it
                found.append(model(**call(row))[0])
    finally:
        model.disable_cache()
        body.remove()
    return found, [step in ran for step in range(STEPS)]


def agree(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> None:
    for row, (a, b) in enumerate(zip(one, two, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.2])
def test_first_block_cache(
    threshold: float, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    with torch.no_grad():
        hooked, ran = theirs(small_wan, FirstBlockCacheConfig(threshold=threshold))
        made, computed = ours(small_wan, captured_wan, "fbcache", threshold=threshold)
    assert computed == ran
    agree(made, hooked)


MAGCACHE = f"""policy p extends magcache {{
  signal size = table([{", ".join(map(str, RATIOS))}]) | cumulative(by = product)
  phase cache {{ reuse chunk while accumulate(error) <= threshold
                at most patience in a row }}
}}
"""


@pytest.mark.parametrize(("threshold", "in_a_row"), [(0.06, 3), (0.12, 4), (0.3, 2)])
def test_magcache(
    threshold: float, in_a_row: int, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """The hook says `<=` where the publication says `<`; nothing else differs for 9 steps."""
    config = MagCacheConfig(threshold, in_a_row, 0.2, STEPS, list(RATIOS))
    with torch.no_grad():
        hooked, ran = theirs(small_wan, config)
        made, computed = ours(small_wan, captured_wan, MAGCACHE, threshold=threshold, patience=in_a_row)
    assert computed == ran
    assert not all(computed)
    agree(made, hooked)


def test_magcache_in_diffusers_rounds_the_first_steps(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """15% of 9 steps is 1.35: the publication and we compute every step that begins before, the hook rounds to 1."""
    config = MagCacheConfig(0.3, 2, 0.15, STEPS, list(RATIOS))
    with torch.no_grad():
        _, ran = theirs(small_wan, config)
        _, computed = ours(small_wan, captured_wan, MAGCACHE, threshold=0.3, patience=2, retention=0.15)
    assert ran[:2] == [True, False]
    assert computed[:2] == [True, True]


@pytest.mark.parametrize("order", [1, 2])
def test_taylorseer(order: int, small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Of whole blocks. The hook forecasts the step behind the first ones, where the publication computes it."""
    last = len(small_wan.blocks) - 1
    config = TaylorSeerCacheConfig(
        3, 3, max_order=order, taylor_factors_dtype=torch.float32, cache_identifiers=[rf"blocks\.{last}"]
    )
    with torch.no_grad():
        hooked, _ = theirs(small_wan, config)
        stand_in = f"taylor(output, order = {order})"
        policy = (
            "policy p {\n  phase all { compute steps 0..2, 4, 7 of 9 }\n"
            f"  layers blocks[*] {{ keep output  reuse as {stand_in} }}\n}}\n"
        )
        made, _ = ours(small_wan, captured_wan, policy)
        _, published = ours(small_wan, captured_wan, "taylorseer", interval=3)
    agree(made, hooked)
    assert published == [True, True, True, True, False, False, True, False, False]


def test_taylorseer_of_modules(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Of each module, as published. The policy computes the steps that the hook computes."""
    modules = [r"blocks\.\d+\.(attn1|attn2|ffn)"]
    config = TaylorSeerCacheConfig(
        3, 3, max_order=2, taylor_factors_dtype=torch.float32, cache_identifiers=modules
    )
    with torch.no_grad():
        hooked, _ = theirs(small_wan, config)
        masked = "policy p extends taylorseer_parts { phase cycle { compute steps 0..2, 4, 7 of 9 } }"
        made, computed = ours(small_wan, captured_wan, masked, warmup=2)
    assert computed == [True, True, True, False, True, False, False, True, False]
    agree(made, hooked)
    with torch.no_grad():
        _, published = ours(small_wan, captured_wan, "taylorseer_parts", interval=3)
    assert published == [True, True, True, True, False, False, True, False, False]


@pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="cache-dit is the extra `peers`")
@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.2])
def test_dbcache_of_cache_dit(
    threshold: float, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """F1B0 with four first steps, at most three reuses in a row."""
    import cache_dit

    adapter = cache_dit.BlockAdapter(
        transformer=small_wan, blocks=small_wan.blocks, forward_pattern=cache_dit.ForwardPattern.Pattern_2
    )
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=4,
        max_continuous_cached_steps=3, num_inference_steps=STEPS, enable_separate_cfg=False,
    )  # fmt: skip
    cache_dit.enable_cache(adapter, cache_config=config)
    try:
        with torch.no_grad():
            hooked = [small_wan(**call(row))[0] for row in range(STEPS)]
    finally:
        cache_dit.disable_cache(adapter)
    with torch.no_grad():
        made, computed = ours(small_wan, captured_wan, "dbcache_f1", threshold=threshold)
    assert threshold < 0.2 or not all(computed)
    agree(made, hooked)
