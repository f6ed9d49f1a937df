"""A generation several ways: exact changes nothing, shares are those of the trace, FLOPs those of the counter."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mccompile import api
from mccompile.generate.compare import (
    announce,
    can_judge,
    compare,
    compile_contenders,
    contenders,
    last_call,
    run_with,
)
from mccompile.generate.errors import OptionRefused
from mccompile.generate.flops import count, prices_of
from mccompile.generate.run import Settings, call_arguments, generate
from mccompile.language.load import load_policy
from mccompile.pipelines.errors import PipelineFailed
from mccompile.pipelines.finding import driver_for
from mccompile.policy.facts import is_exact
from mccompile.runtime.trace import share_computed
from tests.generate.conftest import Small


def nothing(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def some(name: str):  # type: ignore[no-untyped-def]
    seen.append(name)
    return nothing


seen: list[str] = []

TOP = """
policy half {
  signal motion = frame_diff(block_output) | normalise(by = mean)
  phase first for 2 steps { compute }
  phase move { compute top 50% of tokens by motion }
  layers blocks[0] { compute }
  layers blocks[1..] { keep residual }
  chunks { pending: skip  finished: keep }
}
"""


@pytest.fixture(scope="module")
def models(small: Small):  # type: ignore[no-untyped-def]
    return compile_contenders(small.pipe, small.captured, contenders(load_policy(TOP), {}), "eager", None)


@pytest.fixture(scope="module")
def found(small: Small, models):  # type: ignore[no-untyped-def]
    seen.clear()
    return compare(small.pipe, models, small.call, 0, 2, some, "a red circle moving right over a slate texture")


def test_rows_of_a_comparison(found) -> None:  # type: ignore[no-untyped-def]
    vanilla, exact, half = found.rows
    assert [r.name for r in found.rows] == ["vanilla", "exact", "half"]
    assert (vanilla.policy, vanilla.tokens, vanilla.flops, vanilla.ssim) == ("compute", 1.0, 1.0, 1.0)
    assert exact.psnr == vanilla.psnr == np.inf
    assert np.array_equal(found.videos["vanilla"], found.videos["exact"])
    assert not np.array_equal(found.videos["vanilla"], found.videos["half"])
    assert half.tokens < exact.tokens < 1.0
    assert half.flops < exact.flops < 1.0
    assert all(len(r.seconds) == 2 and r.verdict is not None for r in found.rows)
    assert found.speed_up(vanilla) == 1.0
    assert half.tokens == share_computed(found.events["half"])
    assert seen == [f"{n}: warm-up" for n in ("vanilla", "exact", "half")] + [
        f"{n} {i}/2" for i in (1, 2) for n in ("vanilla", "exact", "half")
    ]


def test_a_warm_up_is_cut_short(small: Small, models) -> None:  # type: ignore[no-untyped-def]
    run_with(small.pipe, models["exact"], small.call, 0, nothing, stop_after=1)
    assert {e.row for e in models["exact"].events} == {0}


def test_runs_with_one_seed_are_one(small: Small, models, found) -> None:  # type: ignore[no-untyped-def]
    again = run_with(small.pipe, models["half"], small.call, 0, nothing)
    assert np.array_equal(again.video, found.videos["half"])
    anonymous = [dataclasses.replace(e, request="") for e in models["half"].events]
    assert anonymous == [dataclasses.replace(e, request="") for e in found.events["half"]]
    other = run_with(small.pipe, models["half"], small.call, 1, nothing)
    assert not np.array_equal(other.video, again.video)


@pytest.mark.parametrize("name", ["vanilla", "exact", "half"])
def test_flops_are_those_that_torch_counts(name: str, small: Small, models) -> None:  # type: ignore[no-untyped-def]
    model, counted = models[name], []
    forward = model.forward

    def over_prefixes(q, k, v, bounds, *_, out_val=None, **__):  # type: ignore[no-untyped-def]
        one = (*q.shape[:2], 1, q.size(-1))
        seen = ((b - a, k[:, :, :n].shape, v[:, :, :n].shape) for a, b, n in bounds.tolist())
        return sum(rows * sdpa_flop_count(one, keys, values) for rows, keys, values in seen)

    def attention(q, k, v, *_, **__):  # type: ignore[no-untyped-def]
        return sdpa_flop_count(q, k, v)

    over_prefixes._get_raw = True
    counters = {
        torch.ops.mccompile.prefix_attention: over_prefixes,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    }

    def watched(*args: object, **kwargs: object) -> object:
        with FlopCounterMode(display=False, custom_mapping=counters) as counter:
            result = forward(*args, **kwargs)
        counted.append(counter.get_total_flops())
        return result

    model.forward = watched
    try:
        with last_call(model) as call:
            run_with(small.pipe, model, small.call, 0, nothing)
    finally:
        del model.forward
    assert count(model, model.events, prices_of(model, call)) == pytest.approx(sum(counted), rel=1e-9)


def test_what_the_pipeline_refuses(small: Small) -> None:
    """A pipeline's own refusal is passed on; an option that it does not have is told before."""
    with pytest.raises(PipelineFailed, match="divisible by 16"):
        generate(small.pipe, small.call | {"height": 30}, 0, nothing)

    class Other:
        transformer = small.pipe.transformer  # type: ignore[attr-defined]

        def __call__(self, prompt: str, num_inference_steps: int) -> None: ...

    with pytest.raises(OptionRefused, match="`--frames` cannot be used here: Other has no argument `num_frames`"):
        call_arguments(Other(), Settings(prompt="a", num_frames=9))


def test_chunks_of_a_model_that_has_none_of_its_own(small: Small) -> None:
    """Asynchronous inference on a model whose blocks are single frames takes diffusers' recommended five."""
    transformer = small.pipe.transformer  # type: ignore[attr-defined]
    own = transformer.config.num_frame_per_block
    assert "causal_block_size" not in call_arguments(small.pipe, Settings(ar_step=5))
    try:
        driver_for(small.pipe).announce(small.pipe, {"causal_block_size": 1})
        assert call_arguments(small.pipe, Settings(ar_step=5))["causal_block_size"] == 5
        assert "causal_block_size" not in call_arguments(small.pipe, Settings(ar_step=0))
        assert call_arguments(small.pipe, Settings(num_frames=121))["base_num_frames"] == 121
    finally:
        driver_for(small.pipe).announce(small.pipe, {"causal_block_size": own})


def test_the_judge_is_asked_what_it_knows() -> None:
    assert can_judge("a blue square moving up")
    assert not can_judge("a cat")
    assert not can_judge(None)


def test_only_words_make_a_policy_approximate() -> None:
    assert [is_exact(load_policy(p)) for p in ("compute", "exact", "motioncache")] == [True, True, False]
    kept = "policy p { phase all { compute } chunks { finished: keep } }"
    assert not is_exact(load_policy(kept))


def test_exact_is_announced_of_what_runs(small: Small) -> None:
    """A budget decides what exact words come to: exact where it changes nothing, approximate where it takes float8."""
    exact = load_policy("exact")
    found, budget = {}, 10**9
    while "float8" not in found:
        policy = replace(exact, cache=replace(exact.cache, dtype="auto", residual="auto", budget=budget))
        assert not is_exact(policy)
        model = api.compile(small.pipe, policy, backend="eager", captured=small.captured)
        model.undo()
        found[model.keeping.cache.dtype] = announce(model)
        assert model.keeping.predicted is not None
        budget = model.keeping.predicted.on_device(model.keeping.cache) - 1
    assert found["model"] == "policy exact is exact: the output is that of the model"
    assert found["float8"] == (
        "policy exact is approximate: its cache keeps keys and values in float8, residuals in bfloat16, "
        "on the model's device"
    )
    motion = compile_contenders(small.pipe, small.captured, contenders(load_policy(TOP), {})[2:], "eager", None)
    assert announce(motion["half"]) == "policy half is approximate: reused tokens differ from computed ones"


def test_a_policy_named_like_a_row_keeps_its_own() -> None:
    assert [w.name for w in contenders(load_policy("exact"), {})] == ["vanilla", "exact", "exact (policy)"]
