"""Policies in words, facts of whole policies, and plans of several views as text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policy_cases import MODULATION, MOTION, PLAIN_CACHE, STATIC, below, grid_of, policy, rest, reuse

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.policy import in_words as words
from mccompile.policy.bind import bind, parameters_of
from mccompile.policy.cells import Cell, Plan
from mccompile.policy.facts import computes_always, is_exact, keeps_increment, model_region, selects_within_chunks
from mccompile.policy.groups import View, bounds_in, bounds_of, view_in, views
from mccompile.policy.plan_text import heading, read_plans, show_plan
from mccompile.policy.planner import plan
from mccompile.policy.reasons import StepReason
from mccompile.policy.within import STANDS_IN, plans_within, reasons_within

C = ir.Const
COMPUTE = policy(rest(ir.Compute()))


def written(layers: str, phases: str = "phase all { compute every 2 steps }", more: str = "") -> ir.PolicyIR:
    return load_policy(Source.of_text(f"policy p {{ {more}\n {phases}\n layers {layers} }}"))


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ("blocks[*] { keep residual }", ["blocks[*]: keep residual, what the blocks add to their input"]),
        ("blocks[3] { compute } layers blocks[4..] { keep output }",
         ["blocks[3]: compute", "blocks[4..]: keep output, what the blocks return"]),
        ("blocks[*].attn { keep output }",
         ["blocks[*].attn: keep output, what this part of each block gives, before its gate"]),
        ("model { keep residual }",
         ["model: keep residual, the difference between the model's output and its latent input"]),
        ("blocks[*].ffn { keep residual }",
         ["blocks[*].ffn: keep residual, what this part of each block adds to its input"]),
        ("model { keep output }", ["model: keep output, what the model returns"]),
        ("blocks[*] { keep residual reuse as kept(residual) + 0.5 * before(before(residual)) }",
         ["blocks[*]: keep residual, what the blocks add to their input",
          "  reuse as kept(residual) + 0.5 * before(before(residual)): "
          "the last 1 results are kept, and those of the last 2 steps"]),
        ("blocks[*] { keep residual reuse as taylor(residual, order = 1) }",
         ["blocks[*]: keep residual, what the blocks add to their input",
          "  reuse as taylor(residual, order = 1): the last 2 results are kept"]),
        ("blocks[*] { keep residual reuse as kept(residual) + 0.5 * before(residual) }",
         ["blocks[*]: keep residual, what the blocks add to their input",
          "  reuse as kept(residual) + 0.5 * before(residual): "
          "the last 1 results are kept, and those of the last 1 step"]),
    ],
)  # fmt: skip
def test_regions_in_words(layers: str, told: list[str]) -> None:
    assert list(words.regions(written(layers))) == told


def test_merged_tokens_in_words() -> None:
    (told,) = words.regions(load_policy("merge"))
    assert told == "blocks[*]: merge residuals: a token takes that of the computed one nearest by `embedded`"
    merged = replace(load_policy("merge").regions[0], where=ir.Blocks(0, 3))
    two = replace(COMPUTE, regions=(merged, ir.Region(ir.Blocks(4, -1), "output")))
    assert list(words.regions(two))[1:] == ["blocks[4..]: keep output, what the blocks return"]


def test_a_count_of_several_parameters_is_told_as_some() -> None:
    window = ir.KeyWindow(ir.Apply("add", (ir.ParamRef("near"), ir.ParamRef("far"))), C(0.0))
    assert words.seen(window) == "attention reads the keys of the last some chunks, a token's own among them"


def test_regions_that_decide_apart_and_bands_in_words() -> None:
    found = list(words.regions(load_policy("fastercache")))
    assert found[0] == "attn = blocks[*].attn: keep output, what this part of each block gives, before its gate"
    assert found[1].startswith("  reuse as kept(output) + ahead * (kept(output) - kept(output, 2)): the last 2 results")
    assert found[2].startswith("whole = model: keep gap, the difference between what the model returns and what it")
    assert found[3].endswith(": the low and the high frequencies of each frame, weighted")
    each = replace(COMPUTE, regions=(ir.Region(ir.Blocks(0, -1), "increment", each=True),))
    assert list(words.regions(each)) == ["each blocks[*]: keep increment, the step of the latent"]
    step = replace(COMPUTE, regions=(ir.Region(ir.Integration(), "increment"),))
    (told,) = words.regions(step)
    assert told == "the whole model with the sampler's step: keep increment, the step of the latent"


@pytest.mark.parametrize(
    ("cache", "told"),
    [
        ("", []),
        ("window: 1 chunks", ["attention reads the keys of a token's own chunk (approximate)"]),
        ("window: n chunks  sink: 2 chunks  device: cpu",
         ["keeps keys and values in the model's dtype, residuals in the model's dtype, in host memory",
          "attention reads the keys of the last `n` chunks, a token's own among them, and those of the first 2 "
          "(approximate)"]),
        ("window: 2 chunks  keys: top n chunks by -redundancy(key)",
         ["attention reads the keys of the last 2 chunks, a token's own among them (approximate)",
          "of the chunks between it reads as many keys as `n` chunks hold, the best by `-redundancy(key)`, for each "
          "head and chunk (approximate)"]),
        ("window: 1 chunks  keys: top 1 chunks by attention(key)",
         ["attention reads the keys of a token's own chunk (approximate)",
          "of the chunks between it reads as many keys as one chunk holds, the best by `attention(key)`, for each head "
          "and chunk (approximate)"]),
    ],
)  # fmt: skip
def test_the_cache_in_words(cache: str, told: list[str]) -> None:
    used = "param n = 3 in 1..9" if "n chunks" in cache else ""
    made = written("blocks[*] { keep residual }", more=f"{used} cache {{ {cache} }}")
    assert list(words.kept(made.cache)) == told


def test_a_window_makes_a_policy_that_computes_everything_another_one_than_the_model() -> None:
    own = load_policy("compute")
    assert is_exact(own)
    assert computes_always(own)
    within = replace(own, cache=replace(own.cache, window=ir.KeyWindow(C(5.0), C(0.0))))
    assert not is_exact(within)
    assert not computes_always(within)


@pytest.mark.parametrize("pending", ["skip", "compute"])
@pytest.mark.parametrize("finished", ["keep", "refresh", "compute"])
def test_chunks_in_words(pending: str, finished: str) -> None:
    made = replace(COMPUTE, chunks=ir.Chunks(None, pending, finished))  # type: ignore[arg-type]
    first, last = words.chunks(made)
    assert first == f"chunks that have not begun are {'skipped' if pending == 'skip' else 'computed'}"
    assert last.startswith({"keep": "finished chunks keep", "refresh": "finished chunks get one last clean pass"}.get(
        finished, "finished chunks are computed"
    ))  # fmt: skip
    framed = replace(made, chunks=replace(made.chunks, frames=7), branches=ir.Branches("cond", batch=False))
    assert list(words.chunks(framed)) == [
        "a chunk is 7 latent frames", first, last, "the other guidance branches follow the decisions of cond",
    ]  # fmt: skip
    *_, batch = words.chunks(replace(framed, branches=ir.Branches("cond", batch=True)))
    assert batch == "the other guidance branches follow the decisions of cond, and run with it in one batch"


def test_what_is_kept_in_words() -> None:
    model = ir.Cache("model", "auto", "model", None, None, False)
    assert [*words.kept(PLAIN_CACHE), *words.kept(model)] == []
    assert list(words.kept(replace(model, dtype="bfloat16"))) == [
        "keeps keys and values in bfloat16, residuals in the model's dtype, on the model's device"
    ]
    assert list(words.kept(replace(model, residual="float16"))) == [
        "keeps keys and values in the model's dtype, residuals in float16, on the model's device"
    ]
    (host,) = words.kept(replace(model, device="cpu"))
    assert host.endswith("in host memory")
    (budget,) = words.kept(replace(model, budget=10**9, device="cpu"))
    assert budget == "keeps at most 1,000,000,000 bytes on the model's device: `--stage memory` tells how"


@pytest.mark.parametrize(
    ("param", "value", "told"),
    [
        (ir.Param("a", 0.25, 0.0, 1.0, False, "%"), None, ("a", "25%", "0%..100%")),
        (ir.Param("a", 0.25, 0.0, 1.0, False, "%"), 0.5, ("a", "50%", "0%..100%")),
        (ir.Param("n", 5, 1, 50, True, "steps"), None, ("n", "5 steps", "1..50 steps")),
        (ir.Param("x", 0.1, 0.01, 0.5, False, ""), 0.0, ("x", "0", "0.01..0.5")),
    ],
)
def test_a_parameter_in_words(param: ir.Param, value: float | None, told: tuple[str, str, str]) -> None:
    assert words.parameter(param, value) == told


CLOCK, PARAMETERS = "static: the clock decides", "static: the clock and the parameters decide"
FOLDED = "static, once the model's timestep embedding is known: folded into the plan (give --model)"
GRAPH = "dynamic: decided by nodes in the graph, from data"
FIXED = reuse(below(ir.ClockRef("step"), ir.ParamRef("a")))


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (ir.Compute(), CLOCK),
        (ir.StepMask((True,)), CLOCK),
        (ir.Every(C(2.0)), PARAMETERS),
        (ir.Every(ir.ParamRef("a")), PARAMETERS),
        (FIXED, PARAMETERS),
        (reuse(below(MODULATION, C(1.0))), FOLDED),
        (reuse(below(MOTION, C(1.0))), GRAPH),
        (ir.Top(C(0.4), MOTION), GRAPH),
        (replace(FIXED, max_reused=C(0.9)), "dynamic: a part of the tokens is chosen in the graph, from data"),
    ],
)
def test_when_a_rule_is_decided(rule: ir.Rule, told: str) -> None:
    assert words.when_decided(rule, COMPUTE) == told
    own = ir.Phase("p", ir.Rest(), rule, regions=(ir.RegionRule("front", ir.Compute()),))
    assert list(words.rules_decided(own, COMPUTE)) == [("p", told), ("  front", CLOCK)]


def test_rules_of_branches_are_told_by_name() -> None:
    made = load_policy("fastercache")
    found = dict(words.rules_decided(made.phases[1], made))
    assert list(found) == ["late", "  attn", "  uncond", "  uncond.whole"]
    assert (found["  attn"], found["  uncond.whole"]) == (PARAMETERS, PARAMETERS)


@pytest.mark.parametrize(
    ("of", "late", "told"),
    [
        (MODULATION, False, "known before the first frame"),
        (MOTION, False, "measured at each step"),
        (MODULATION, True, "known after the step, used by the next"),
    ],
)
def test_when_a_signal_is_known(of: ir.Expr, late: bool, told: str) -> None:
    assert words.known(ir.Signal("s", of, ir.Granularity.CHUNK, late), COMPUTE) == told


# ---- facts of whole policies -------------------------------------------------------------------------------
def test_an_exact_policy_loses_nothing() -> None:
    kept = replace(COMPUTE, chunks=ir.Chunks(None, "skip", "refresh"))
    lossless = replace(kept, cache=replace(PLAIN_CACHE, dtype="model", residual="float32"))
    assert is_exact(kept)
    assert is_exact(lossless)
    assert is_exact(replace(lossless, cache=replace(lossless.cache, budget=1)))
    for made in (
        replace(kept, cache=replace(PLAIN_CACHE, budget=1)),  # any dtype may meet it
        replace(kept, cache=replace(PLAIN_CACHE, dtype="bfloat16")),
        replace(kept, cache=replace(PLAIN_CACHE, residual="bfloat16")),
        replace(kept, chunks=ir.Chunks(None, "skip", "keep")),
        replace(kept, phases=(rest(ir.Every(C(2.0))),)),
    ):
        assert not is_exact(made)


def test_what_regions_keep_and_select() -> None:
    assert not keeps_increment(COMPUTE)
    assert keeps_increment(replace(COMPUTE, regions=(ir.Region(ir.Integration(), "increment"),)))
    assert model_region(COMPUTE) is None
    whole = ir.Region(ir.WholeModel(), "residual")
    assert model_region(replace(COMPUTE, regions=(*COMPUTE.regions, whole))) == whole
    for granularity in ir.Granularity:
        made = policy(ir.Phase("a", ir.ForSteps(C(1.0)), ir.Compute()), rest(reuse(below(MOTION, C(1.0)), granularity)))
        assert selects_within_chunks(made) == (granularity > ir.Granularity.CHUNK)


def test_values_of_several_policies_are_told_apart() -> None:
    one = policy(rest(FIXED), params=(ir.Param("a", 1, 0, 9, False, ""),))
    two = policy(rest(FIXED), params=(ir.Param("b", 1, 0, 9, False, ""),))
    values = {"a": 2.0, "b": 3.0, "typo": 4.0}
    assert parameters_of(one, values, [one, two]) == {"a": 2.0, "typo": 4.0}
    assert parameters_of(two, values, [one, two]) == {"b": 3.0, "typo": 4.0}


# ---- several views -----------------------------------------------------------------------------------------
def test_plans_of_several_views_read_back() -> None:
    bound = bind(load_policy("fastercache"), {})
    among = views(bound.ir)
    plans = {name: plan(one, grid_of(8), {}, STATIC) for name, one in bounds_of(bound).items()}
    heads = [heading(view, among) for view in among]
    assert heads == [
        "other branches, regions attn", "other branches, regions whole",
        "branch uncond, regions attn", "branch uncond, regions whole",
    ]  # fmt: skip
    text = "\n".join(f"{head}\n{show_plan(plans[view.name])}" for head, view in zip(heads, among, strict=True))
    assert read_plans(text) == plans
    (only,) = set(plans.values()) & {plans["attn"]}
    assert read_plans(show_plan(only)) == {"": only}
    assert heading(View("", ""), [View("", "")]) == ""
    assert heading(View("", "front"), [View("", "front"), View("", "")]) == "regions front"
    assert heading(View("", ""), [View("uncond", ""), View("", "")]) == "other branches"


def test_a_branch_with_rules_of_its_own_has_views_of_its_own() -> None:
    bound = bind(load_policy("fastercache"), {})
    assert view_in(bound.ir, "attn", "uncond") == View("uncond", "attn")
    assert view_in(bound.ir, "attn", "cond") == View("", "attn")
    for branch, name in (("uncond", "uncond whole"), ("cond", "whole")):
        assert bounds_in(bound, branch)["whole"] == bounds_of(bound)[name]
    assert bounds_of(bound)["whole"] != bounds_of(bound)["uncond whole"]


def test_layers_within_the_model_do_not_run_where_its_output_stands_in() -> None:
    made = load_policy("fastercache")
    actions = ("compute", "reuse", "dynamic")

    def cells(account: float) -> tuple[Cell, ...]:
        return tuple(Cell(n, 0, a, (), account) for n, a in enumerate(actions))  # type: ignore[arg-type]

    def planned(account: float) -> Plan:
        return Plan("p", grid_of(3), ("all",), (), cells(account), (), ())

    plans = {view.name: planned(float(n)) for n, view in enumerate(views(made))}
    own = replace(planned(0.0), cells=tuple(replace(c, action="compute") for c in cells(0.0)))
    found = plans_within(made, {**plans, "attn": own})
    assert [(c.action, c.account) for c in found["attn"].cells] == [("compute", 0.0), ("reuse", 1.0), ("dynamic", 1.0)]
    assert found["whole"] == plans["whole"]
    why = {a: StepReason(0, "all", a, f"because {a}", (), None, None) for a in actions}  # type: ignore[arg-type]
    inner = (why["compute"],) * 3
    told = reasons_within(made, {view.name: tuple(why.values()) for view in views(made)} | {"attn": inner})
    assert [(r.action, r.why) for r in told["attn"]] == [
        ("compute", "because compute"), ("reuse", STANDS_IN), ("dynamic", f"because dynamic: {STANDS_IN}, or not"),
    ]  # fmt: skip
    assert plans_within(COMPUTE, {"": own}) == {"": own}
