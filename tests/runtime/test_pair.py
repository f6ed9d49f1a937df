"""Both guidance branches in one forward: the same videos and the same traces as one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import pytest
import torch

import mccompile.api as api
from mccompile.backend.inductor import inductor
from mccompile.backend.record import Recorder
from mccompile.diagnostics.source import Source
from mccompile.generate.flops import count, prices_of
from mccompile.language.load import load_policy
from mccompile.lowering.lower import lower
from mccompile.policy.bind import bind
from mccompile.policy.phases import Grid
from mccompile.runtime.blocks import Backend
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.exercise import record_roles
from mccompile.runtime.pair import Pairing, Pending
from mccompile.runtime.trace import Event
from tests.runtime.conftest import Tiny, embeds, pipeline
from tests.zoo import Family, zoo

ROWS = 19  # calls of a branch in a generation: 10 steps in 4 chunks, 3 steps apart
APART, TOGETHER = "branches { share decision of cond }", "branches { share decision of cond  batch }"
MOTION = """policy motion {
  param threshold = 0.5 in 0.01..5
  signal drift  = rel_l1(modulation)
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for 2 steps       { compute }
  phase coarse until 1 refreshes { reuse chunk while accumulate(drift) < threshold }
  phase fine                     { reuse token while accumulate(drift * motion) < threshold }
  layers blocks[0] { compute }
  layers blocks[1..] { keep residual }
  chunks { pending: skip  finished: keep }
  BRANCHES
}
"""
CLOSE = {"rtol": 0, "atol": 3e-5}
Claims = list[Pending]


def compiled(tiny: Tiny, policy: str, branches: str, **more: object) -> CompiledModel:
    text = Source("test.policy", policy.replace("BRANCHES", branches))
    more = {"backend": "eager", "captured": tiny.captured, "call": tiny.call, **more}
    return api.compile(tiny.pipe, text, **more)  # type: ignore[arg-type]


def trace(model: CompiledModel) -> list[Event]:
    return [dataclasses.replace(e, request="") for e in model.events]


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Claims:
    """Every half that was handed out."""
    found: Claims = []
    own = Pairing._claim

    def noted(self: Pairing, pending: Pending) -> object:
        found.append(pending)
        return own(self, pending)

    monkeypatch.setattr(Pairing, "_claim", noted)
    return found


def same(tiny: Tiny, use: Callable[[CompiledModel], torch.Tensor], policy: str = MOTION) -> CompiledModel:
    """The same video and the same trace with and without `batch`; returns the model with it."""
    results = []
    for branches in (APART, TOGETHER):
        model = compiled(tiny, policy, branches)
        results.append((use(model), trace(model)))
        model.undo()
    (one, events), (two, others) = results
    assert others == events
    torch.testing.assert_close(two, one, **CLOSE)
    return model


def test_a_generation_is_that_of_one_branch_after_the_other(tiny: Tiny, claims: Claims) -> None:
    model = same(tiny, lambda _: tiny.run())
    assert len(claims) == ROWS - 1  # in the first row nothing is known of the other branch
    assert {e.action for e in model.events} == {"skip", "reuse", "partial", "full"}


@pytest.mark.parametrize("kept", ["dtype: bfloat16", "dtype: float8", "device: cpu", "dtype: float16  device: cpu"])
def test_whatever_is_kept_is_kept_of_both(tiny: Tiny, claims: Claims, kept: str) -> None:
    """Coarse dtypes round alike in both forms, so that the few sums in another order are all that differs."""
    policy = MOTION.replace("BRANCHES", f"cache {{ {kept} }}\n  BRANCHES")
    results = []
    for branches in (APART, TOGETHER):
        model = compiled(tiny, policy, branches)
        results.append((tiny.run(), [(e.row, e.branch, e.chunk) for e in model.events]))
        model.undo()
    assert len(claims) == ROWS - 1
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=5e-2)


def test_a_budget_keeps_branches_apart(tiny: Tiny, claims: Claims) -> None:
    model = compiled(tiny, MOTION.replace("BRANCHES", "cache { budget: 1GB }\n  BRANCHES"), TOGETHER)
    tiny.run()
    assert not claims
    assert any("byte budget" in r.reason for r in model.runner.lowered.refusals)


def test_decided_ahead_and_run_together(tiny: Tiny, claims: Claims) -> None:
    def use(model: CompiledModel) -> torch.Tensor:
        model.runner.foresees = True
        return tiny.run()

    same(tiny, use)
    assert len(claims) == ROWS - 1


def test_each_half_is_its_own_branch(tiny: Tiny) -> None:
    """Had both halves one prompt, guidance would do nothing."""
    compiled(tiny, MOTION, TOGETHER)
    assert not torch.allclose(tiny.run(guidance_scale=3.0), tiny.run(guidance_scale=1.5), atol=1e-3)


def changing(tiny: Tiny, at: int, change: Callable[[dict[str, object], str], bool]) -> torch.Tensor:
    """A run in which `change` sees, and may alter, each call from row `at` on; False from it: the call is not made."""
    model = tiny.pipe.transformer
    own, seen = model.forward, []

    def forward(**call: object) -> object:
        row = len(seen) // 2
        seen.append(row)
        if row >= at and not change(call, "uncond" if len(seen) % 2 == 0 else "cond"):
            latents = call["hidden_states"]
            assert isinstance(latents, torch.Tensor)
            return (torch.zeros_like(latents),)
        return own(**call)

    model.forward = forward
    try:
        return tiny.run()
    finally:
        del model.forward


def test_a_prompt_changed_in_mid_run_is_seen(tiny: Tiny, claims: Claims) -> None:
    other = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(5))

    def change(call: dict[str, object], branch: str) -> bool:
        if branch == "uncond":
            call["encoder_hidden_states"] = other
        return True

    same(tiny, lambda _: changing(tiny, 8, change))
    # row 8 is foreseen wrongly, row 9 is only watched
    assert len(claims) == ROWS - 1 - 2


def test_latents_changed_in_place_between_the_branches_are_seen(tiny: Tiny, claims: Claims) -> None:
    def change(call: dict[str, object], branch: str) -> bool:
        if branch == "uncond":
            latents = call["hidden_states"]
            assert isinstance(latents, torch.Tensor)
            latents.mul_(0.9)
        return True

    same(tiny, lambda _: changing(tiny, 8, change))
    assert len(claims) == 7  # rows 1 to 7: afterwards nothing that is foreseen comes true


@pytest.mark.parametrize("back", [12, 100])
def test_a_branch_that_pauses_goes_on_from_where_it_was(tiny: Tiny, claims: Claims, back: int) -> None:
    """Guidance in a range of steps; of the half that was made and never asked for nothing remains."""
    rows = []

    def change(call: dict[str, object], branch: str) -> bool:
        rows.append(branch)
        return branch == "cond" or len(rows) // 2 + 5 > back

    def use(model: CompiledModel) -> torch.Tensor:
        rows.clear()
        return changing(tiny, 6, change)

    same(tiny, use)
    assert 5 <= len(claims) < ROWS - 1


def test_requests_that_take_turns_keep_apart(claims: Claims) -> None:
    """Two generations call one model row by row; each is what it is alone."""
    family, model, prepared = captured("wan")
    alone = [loop(model, prepared, family, [seed], TOGETHER)[0] for seed in (0, 1)]
    count = len(claims)
    mixed, _ = loop(model, prepared, family, [0, 1], TOGETHER)
    assert count == len(claims) - count == 2 * (STEPS - 1)
    for seed, outputs in enumerate(alone):
        torch.testing.assert_close(mixed[seed], outputs[seed], **CLOSE)


@pytest.mark.slow
def test_samples_of_a_batch_decide_alone_and_run_with_their_other_branch(claims: Claims) -> None:
    text = torch.cat([embeds(seed=s)["prompt_embeds"] for s in (0, 1)])  # type: ignore[misc]
    tiny = Tiny(pipeline(), {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": -text}, None)
    model = same(tiny, lambda _: tiny.run(generator=[torch.Generator().manual_seed(s) for s in (0, 1)]))
    assert len(claims) == ROWS - 1
    of_samples = [[e.computed for e in model.events if e.sample == s] for s in (0, 1)]
    assert of_samples[0] != of_samples[1]


def test_a_run_that_was_stopped_leaves_nothing_behind(tiny: Tiny) -> None:
    model = compiled(tiny, MOTION, TOGETHER)
    wanted = tiny.run()
    own, calls = model.forward, []

    def forward(**call: object) -> object:
        calls.append(call)
        if len(calls) == 14:  # row 6, after its first branch
            raise KeyboardInterrupt
        return own(**call)

    model.forward = forward
    with pytest.raises(KeyboardInterrupt):
        tiny.run()
    del model.forward
    assert torch.equal(tiny.run(), wanted)


def test_work_is_counted_as_without(tiny: Tiny) -> None:
    calls: list[dict[str, object]] = []
    counted = []
    for branches in (APART, TOGETHER):
        model = compiled(tiny, MOTION, branches)
        changing(tiny, 0, lambda call, _: calls.append(call) is None)
        counted.append(count(model, model.events, prices_of(model, calls[-1])))
        model.undo()
    assert counted[0] == counted[1]


def test_compiled_blocks_run_both_and_any_number_of_samples(shared: Tiny, tiny: Tiny) -> None:
    """Blocks as packages, for one sample and for several; the rest eager, which keeps the compile short."""
    assert shared.captured is not None
    policy = MOTION.replace("blocks[0] { compute }", "blocks[0..1] { compute }").replace("blocks[1..]", "blocks[2]")
    texts = [Source("test.policy", policy.replace("BRANCHES", b)) for b in (APART, TOGETHER)]
    two = torch.cat([embeds(seed=s)["prompt_embeds"] for s in (0, 1)])  # type: ignore[misc]
    batch = {"prompt_embeds": two, "negative_prompt_embeds": -two}
    ir = load_policy(texts[1])
    lowered, bound = lower(shared.captured.model, ir, shared.captured.prefixes), bind(ir, {})
    recorder = Recorder()
    record_roles(recorder, lowered, bound, shared.captured.calls, instead=blocks_alone)
    backend = blocks_alone(inductor(recorder, lowered, workers=0))
    found = []
    for text, chosen in ((texts[0], "eager"), (texts[1], backend)):
        model = api.compile(tiny.pipe, text, call=tiny.call, captured=shared.captured, backend=chosen)  # type: ignore[arg-type]
        one = tiny.run()
        several = tiny.run(**batch, generator=[torch.Generator().manual_seed(s) for s in (0, 1)])
        found.append((one, several, trace(model)))
        model.undo()
    assert found[0][2] == found[1][2]
    for eager, packaged in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(packaged, eager, **CLOSE)


def blocks_alone(backend: Backend) -> Backend:
    return lambda module, role: backend(module, role) if role.part in ("block", "rows") else module.forward


# ---- other families, by rows and by whole steps --------------------------------------------------------------
STEPS = 5
GRID = Grid(STEPS, tuple(900.0 - 150 * i for i in range(STEPS)), tuple(0.9 - 0.15 * i for i in range(STEPS)))
TOKENS = """policy tokens {
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for 1 step { compute }
  phase fine              { compute top 40% of tokens by motion }
  layers blocks[*] { keep residual }
  BRANCHES
}
"""
WHOLE = """policy whole {
  signal drift = rel_l1(embedded)
  phase one for 1 step { compute }
  phase rest           { reuse chunk while accumulate(drift) < 3 }
  layers blocks[*] { keep residual }
  BRANCHES
}
"""


@cache
def captured(name: str) -> tuple[Family, torch.nn.Module, api.Prepared]:
    family = zoo(name)
    model = family.model(torch.float32)
    one, two = (family.call(size, dtype=torch.float32) for size in family.sizes[:2])
    return family, model, api.prepare(model, probe=one, second=two)


def loop(
    model: torch.nn.Module, prepared: api.Prepared, family: Family, seeds: list[int], branches: str,
    policy: str = TOKENS, two_from: int = STEPS,
) -> tuple[dict[int, torch.Tensor], CompiledModel]:  # fmt: skip
    """Outputs of both branches, by seed: one generation per seed, row by row in turn.

    two_from: the row from which on two samples are called in place of one; the output is that of the last.
    """
    clocks = {seed: Timeline(f"run {seed}", GRID, steps_in_order(GRID)) for seed in seeds}
    text = Source("test.policy", policy.replace("BRANCHES", branches))
    compiled_ = api.compile(model, text, captured=prepared, clock=clocks[seeds[0]], backend="eager")
    outputs: dict[int, list[torch.Tensor]] = {seed: [] for seed in seeds}
    texts = {s: [family.call(family.sizes[2], dtype=torch.float32, seed=100 * s + i) for i in (0, 1)] for s in seeds}
    for row in range(STEPS):
        if row == two_from:
            texts = {seed: [twice(one) for one in both] for seed, both in texts.items()}
        for seed, clock in clocks.items():
            clock.row, compiled_.clock = row, clock
            new = family.call(family.sizes[2], dtype=torch.float32, seed=10 * seed + row)
            new = new if row < two_from else twice(new)
            for branch, given in zip(("cond", "uncond"), texts[seed], strict=True):
                own = {n: given[n] for n in given if n.startswith(("encoder", "pooled"))}
                with compiled_.cache_context(branch), torch.no_grad():
                    result = compiled_(**{**new, **own})
                outputs[seed].append((result[0] if isinstance(result, tuple) else result.sample)[-1:])
    return {seed: torch.stack(found) for seed, found in outputs.items()}, compiled_


def twice(call: dict[str, object]) -> dict[str, object]:
    """The inputs of two samples that are alike."""
    return {name: torch.cat([v, v]) if isinstance(v, torch.Tensor) else v for name, v in call.items()}


@pytest.mark.parametrize("policy", [TOKENS, WHOLE])
def test_more_samples_in_mid_run_are_joined_anew(claims: Claims, policy: str) -> None:
    family, model, prepared = captured("wan")
    apart, together = (
        loop(model, prepared, family, [0], branches, policy, two_from=2)[0] for branches in (APART, TOGETHER)
    )
    torch.testing.assert_close(together[0], apart[0], **CLOSE)
    assert len(claims) == STEPS - 2  # neither in the first row, nor in the first one of two samples


QUICK = (("wan", TOKENS), ("wan", WHOLE), ("hunyuan", TOKENS))  # apart and in one stream; rows and whole calls
FAMILIES = [
    pytest.param(name, policy, id=f"{kind}-{name}", marks=[] if (name, policy) in QUICK else [pytest.mark.slow])
    for kind, policy in (("rows", TOKENS), ("whole", WHOLE))
    for name in ("wan", "hunyuan", "wan_per_token_time", "cogvideox")
]


@pytest.mark.parametrize(("name", "policy"), FAMILIES)
def test_other_families(name: str, policy: str, claims: Claims) -> None:
    family, model, prepared = captured(name)
    (one, first), (two, second) = (loop(model, prepared, family, [0], b, policy) for b in (APART, TOGETHER))
    assert first.runner.engine.uses_rows == (policy is TOKENS)
    assert trace(first) == trace(second)
    assert {"full", "partial" if policy is TOKENS else "reuse"} <= {e.action for e in second.events}
    torch.testing.assert_close(two[0], one[0], rtol=1e-4, atol=1e-4)
    assert len(claims) == STEPS - 1


def test_what_cannot_run_together_is_refused_and_runs_apart(claims: Claims) -> None:
    family, model, prepared = captured("wan")
    fixed = dataclasses.replace(prepared, model=dataclasses.replace(prepared.model, samples=(), unbatched="a reason"))
    outputs, compiled_ = loop(model, fixed, family, [0], TOGETHER)
    assert "run one after the other: a reason" in [r.reason for r in compiled_.runner.lowered.refusals]
    torch.testing.assert_close(outputs[0], loop(model, prepared, family, [0], APART)[0][0], **CLOSE)
    assert not claims


