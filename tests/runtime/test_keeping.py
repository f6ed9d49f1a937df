"""What a policy keeps: its dtype, its place and its bytes, on a stock pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import mccompile.api as api
from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.language.load import load_policy
from mccompile.lowering.errors import BudgetUnmet
from mccompile.pipelines.budgets import keeping_for
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.errors import OverBudget
from mccompile.runtime.staging import Staging
from tests.embedded_once import prepared
from tests.runtime.conftest import Tiny
from tests.runtime.test_laws import MOTION

ALL = MOTION.replace("threshold = 0.5", "threshold = 0.01")


def under(tiny: Tiny, cache: str, policy: str = MOTION, **more: object) -> CompiledModel:
    """The policy with a `cache { ... }` of these words."""
    ir_ = load_policy(Source("test.policy", policy.replace("chunks {", f"cache {{ {cache} }}\n  chunks {{")))
    return api.compile(tiny.pipe, ir_, call=tiny.call, captured=tiny.captured, backend="eager", **more)  # type: ignore[arg-type]


def videos(tiny: Tiny, *caches: str, policy: str = MOTION) -> Iterator[torch.Tensor]:
    """One video per set of words, in turn."""
    for cache in caches:
        model = under(tiny, cache, policy)
        yield tiny.run()
        model.undo()


def test_the_models_dtype_changes_no_bit(tiny: Tiny) -> None:
    plain, model, same = videos(tiny, "", "dtype: model  device: model", "dtype: float32")
    assert torch.equal(plain, model)
    assert torch.equal(plain, same)


def test_residuals_in_less_touch_nothing_that_is_computed(tiny: Tiny) -> None:
    """All tokens of active chunks computed at each step: what is kept of them is never read."""
    plain, half, quarter = videos(
        tiny, "", "dtype: model  residual: bfloat16", "dtype: model  residual: float8", policy=ALL
    )
    assert torch.equal(plain, half)
    assert torch.equal(plain, quarter)


@pytest.mark.parametrize(("kept", "error"), [("bfloat16", 2**-7), ("float16", 2**-9), ("float8", 2**-2)])
def test_keys_and_values_in_less_stay_near(tiny: Tiny, kept: str, error: float) -> None:
    """Of the video's largest value, after ten steps that each round; every dtype changes something."""
    plain, less = videos(tiny, "", f"dtype: {kept}")
    assert 0 < (plain - less).abs().max() < error * plain.abs().max()


@pytest.mark.parametrize(
    ("cache", "policy"),
    [("dtype: model", MOTION), ("dtype: bfloat16  residual: float8", MOTION), ("dtype: float8", "fbcache")],
)
def test_kept_on_the_host_changes_no_bit(tiny: Tiny, cache: str, policy: str) -> None:
    """Staging forced between host and working copies, both in the same memory: only the copies tell them apart."""
    text = policy if policy == MOTION else f"policy p extends {policy} {{ chunks {{ finished: refresh }} }}"
    (plain,) = videos(tiny, cache, policy=text)
    model = under(tiny, f"{cache}  device: cpu", text)
    blocks = model.runner.engine.blocks
    assert blocks.staging is None  # the model is on the CPU: kept tensors are in host memory already
    blocks.staging = Counted(torch.device("cpu"))
    assert torch.equal(tiny.run(), plain)
    assert blocks.staging.copies > 0


class Counted(Staging):
    """Counts working copies, and spoils each once its block is done: what must go back has gone."""

    copies = 0

    def through(self, blocks):  # type: ignore[no-untyped-def]
        for working in super().through(blocks):
            assert not {t.data_ptr() for t in working} & {t.data_ptr() for hosts in blocks for t in hosts}
            self.copies += 1
            yield working
            for tensor in working:
                tensor.fill_(1)

    def bring(self, host: torch.Tensor) -> torch.Tensor:
        self.copies += 1
        return super().bring(host)


def peak_of(model: CompiledModel) -> list[int]:
    """A list that will hold the most bytes that the stores of one request held after a call."""
    runner, peak = model.runner, [0]
    call = runner.call

    def measured(inputs, moment):  # type: ignore[no-untyped-def]
        result = call(inputs, moment)
        branches = runner.requests[moment.request].branches.values()
        peak[0] = max(peak[0], sum(s.nbytes() for s in branches))
        return result

    runner.call = measured  # type: ignore[method-assign]
    return peak


SIZE = {"height": 48, "width": 64, "num_frames": 29, "guidance_scale": 3.0}


@pytest.mark.parametrize(
    ("cache", "policy"),
    [
        ("", MOTION),
        ("dtype: bfloat16", MOTION),
        ("dtype: float8", MOTION),
        ("dtype: float8", "exact"),
        ("dtype: model  residual: float8", "fbcache"),
    ],
)
def test_bytes_are_predicted(tiny: Tiny, policy: str, cache: str) -> None:
    """Within 10 % of what a run keeps, at a size that no recorded call has, nothing run at that size."""
    text = policy if policy == MOTION else f"policy p extends {policy} {{ chunks {{ finished: refresh }} }}"
    model = under(tiny, cache, text)
    peak = peak_of(model)
    tiny.run()
    model.undo()
    assert tiny.captured is not None
    made, bound = tiny.captured, model.runner.bound
    call = {**tiny.call, **SIZE}
    keeping = keeping_for(tiny.pipe, bound.ir, made.model, made.prefixes, made.calls, call, bound.values)
    assert keeping.predicted is not None
    assert keeping.predicted.total == pytest.approx(peak[0], rel=0.1)


@pytest.mark.parametrize("name", ["exact", "motioncache", "dbcache", "bfloat16"])
def test_bytes_are_predicted_on_the_embedded_model(embedded: tuple[object, api.Prepared], name: str) -> None:
    pipe, captured = embedded
    policy = load_policy("motioncache" if name == "bfloat16" else name)
    if name == "bfloat16":
        policy = replace(policy, cache=replace(policy.cache, dtype="bfloat16", residual="bfloat16"))
    size = {"height": 32, "width": 32, "num_frames": 31}
    more = {"warmup": 1.0, "updates": 1.0, "threshold": 0.01} if name in ("motioncache", "bfloat16") else {}
    model = api.compile(pipe, policy, backend="eager", captured=captured, **more)
    peak = peak_of(model)
    pipe(prompt="a red circle", num_inference_steps=6, ar_step=2, output_type="latent", **size)  # type: ignore[operator]
    model.undo()
    call = {**captured.call, **size}
    keeping = keeping_for(pipe, policy, captured.model, captured.prefixes, captured.calls, call, more)
    assert keeping.predicted is not None
    assert keeping.predicted.total == pytest.approx(peak[0], rel=0.1)


@pytest.fixture(scope="module")
def embedded() -> tuple[object, api.Prepared]:
    pipe = load_pipeline(find_folder(EMBEDDED), Placement("cpu", "float32", False))
    return pipe, prepared(pipe)


def budgeted(tiny: Tiny, budget: int, words: str = "", **size: object) -> CompiledModel:
    policy = load_policy(Source("test.policy", MOTION.replace("chunks {", f"cache {{ {words} }}\n  chunks {{")))
    policy = replace(policy, cache=replace(policy.cache, budget=budget))
    call = {**tiny.call, **SIZE, **size}
    return api.compile(tiny.pipe, policy, call=call, captured=tiny.captured, backend="eager")


def test_a_budget_takes_the_first_measure_that_meets_it(tiny: Tiny) -> None:
    """From no measure to the last: the bytes fall, each run keeps to its budget, and the ladder is climbed in order."""
    budget, taken = 10**9, []
    while not taken or taken[-1][1] != "float8":
        model = budgeted(tiny, budget)
        keeping, peak = model.keeping, peak_of(model)
        assert keeping.predicted is not None
        tiny.run()
        model.undo()
        assert peak[0] <= keeping.predicted.on_device(keeping.cache) <= budget
        taken.append((keeping.cache.residual, keeping.cache.dtype))
        budget = keeping.predicted.on_device(keeping.cache) - 1
    assert taken[:2] == [("model", "model"), ("bfloat16", "model")]
    with pytest.raises(BudgetUnmet, match="keys and values in float8, residuals in bfloat16"):
        budgeted(tiny, budget)


def test_words_that_are_given_are_not_overruled(tiny: Tiny) -> None:
    model = budgeted(tiny, 10**9)
    model.undo()
    least = model.keeping.predicted
    assert least is not None
    with pytest.raises(BudgetUnmet, match="keys and values in the model's dtype, residuals in the model's dtype"):
        budgeted(tiny, least.total - 1, "dtype: model")


def test_a_larger_request_than_compiled_for_is_refused(tiny: Tiny) -> None:
    model = budgeted(tiny, 10**9, num_frames=13)
    model.undo()
    small = model.keeping.predicted
    assert small is not None
    model = budgeted(tiny, int(small.total * 1.2), num_frames=13)
    tiny.run(num_frames=13)
    with pytest.raises(OverBudget) as refused:
        tiny.run()
    assert "the guidance branch keeps" in str(refused.value) or "2 guidance branches keep" in str(refused.value)
    assert not any(r.branches for r in list(model.runner.requests.values())[:-1])


def test_one_request_is_kept_under_a_budget(tiny: Tiny) -> None:
    model = budgeted(tiny, 10**9)
    tiny.run()
    tiny.run()
    assert len(model.runner.requests) == 1


def test_key_values_are_given_out_as_the_model_has_them(tiny: Tiny) -> None:
    model = under(tiny, "dtype: float8")
    tiny.run()
    runner = model.runner
    request, kept = next(reversed(runner.requests.items()))
    name, store = next(iter(kept.branches.items()))
    moment = _moment(request, name)
    assert {b.dtype for buffers in store.memory.buffers.values() for b in buffers} == {torch.uint8}
    given = runner.leading_key_values(moment, 2)
    assert {(t.dtype, t.size(-1)) for pair in given for t in pair} == {(torch.float32, 16)}


def _moment(request: object, branch: str):  # type: ignore[no-untyped-def]
    from mccompile.policy.phases import Grid
    from mccompile.runtime.clock import Moment

    return Moment(request, 0, branch, Grid(1, (0.0,), (0.0,)), (), 0)  # type: ignore[arg-type]


def test_keeping_says_how(tiny: Tiny) -> None:
    model = under(tiny, "dtype: float8  device: cpu")
    cache = model.keeping.cache
    assert (cache.dtype, cache.residual, cache.device) == ("float8", "float8", "cpu")
    assert model.keeping.predicted is None
    assert isinstance(under(tiny, "").keeping.cache, ir.Cache)
