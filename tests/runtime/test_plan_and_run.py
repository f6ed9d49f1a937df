"""What is foreseen of static policies is what a run does: the plan and its reasons against the events, step by step."""

from __future__ import annotations

import pytest
from diffusers import WanTransformer3DModel

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.groups import bounds_of, own_branches
from mccompile.policy.planner import plan
from mccompile.policy.prove import NOTHING
from mccompile.policy.reasons import reasons
from mccompile.policy.within import plans_within, reasons_within
from tests.runtime.test_branch_rules import compiled, run
from tests.runtime.test_forecast import GRID, STEPS

ALL = "layers blocks[*] { keep residual }"
FIRST = "phase first for 2 steps { compute } phase late"
CHUNK = f"{FIRST} {{ reuse chunk while CONDITION }} {ALL}"
CONDITIONS = {
    "age": "step - kept(step) < 3",
    "remainders": "remainder(0 - step, 3) >= 1 and not (remainder(step, 0 - 2) < 0 - 0.5)",
    "two accounts": "accumulate(sigma) < 1.2 and accumulate(fraction, into = debt) < 1",
    "a table": "table([1, 0, 1, 0, 0, 1, 0, 0, 1]) < 0.5",
    "a table by age": "table([0, 0.1, 0.2, 0.5, 0.9], at = step - kept(step)) < 0.4",
    "a product": "abs(1 - cumulative(sigma + 0.5, by = product) / kept(cumulative(sigma + 0.5, by = product))) < 0.4",
    "a mean": "average(remainder(step, 4), over = 3) < 1.5",
    "a running mean": "smooth(remainder(step, 4), by = 50%) < 1.2",
    "the step before": "before(remainder(step, 3)) > 0.5",
    "stairs": "step - kept(step) < pick(timestep, [300, 700], [1 step, 2 steps, 4 steps])",
    "limits": "sigma < 0.7 at most 2 in a row at most 3 in total",
    "all at times": "sigma < 0.9 compute all every 3 steps",
    "all at steps": "sigma < 0.9 compute all steps 4, 7",
    "ways": "remainder(step, 3) < 1 reuse chunk as taylor(residual) while remainder(step, 3) < 2",
}
OTHERS = {
    "bins": f"phase all {{ compute 2 reuse 3 compute 1 reuse 3 }} {ALL}",
    "timestep": "phase a while timestep >= 500 { compute every 2 steps } phase b { compute every 4 steps } " + ALL,
    "by sigma": f"phase a while 0.3 <= sigma < 0.8 {{ compute every 2 steps }} phase b {{ compute }} {ALL}",
    "the last": f"{FIRST} {{ compute every 5 steps }} phase end for last 2 steps {{ compute }} {ALL}",
    "refreshes": f"phase a until 3 refreshes {{ compute every 2 steps }} phase b {{ compute every 3 steps }} {ALL}",
    "parts": f"""{FIRST} {{ attn: compute every 2 steps  ffn: reuse chunk while step - kept(step) < 3 }}
        layers attn = blocks[*].attn {{ keep output }}  layers ffn = blocks[*].ffn {{ keep residual }}""",
    "a gap": f"""{FIRST} {{ front: compute every 2 steps  uncond.whole: reuse chunk while step - kept(step) < 3 }}
        layers front = blocks[..50%] {{ keep residual }}
        layers whole = model {{ keep gap  reuse as low_pass(kept(gap)) + 0.5 * high_pass(kept(gap)) }}""",
    "the model": """phase all { uncond.whole: compute 3 reuse 2 compute 1 reuse 2 compute 1
        cond.attn: compute 3 reuse 2 compute 1 reuse 3 }
        layers attn = blocks[1].attn { keep output }
        layers whole = model { keep output  reuse as (1 - 0.1 * (step - kept(step))) * kept(output) }""",
}
POLICIES = {name: CHUNK.replace("CONDITION", condition) for name, condition in CONDITIONS.items()} | OTHERS


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_foreseen_is_done(name: str, small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    source = Source("p.policy", f"policy p {{ {POLICIES[name]} }}")
    policy = load_policy(source)
    bounds = bounds_of(bind(policy, {}))
    plans = plans_within(policy, {view: plan(own, GRID, {}, frozenset()) for view, own in bounds.items()})
    why = reasons_within(policy, {view: reasons(own, GRID, NOTHING) for view, own in bounds.items()})
    made, clock = compiled(small_wan, captured_wan, source)
    run(made, clock)
    done: dict[str, dict[int, str]] = {}
    for event in made.events:
        branch = event.branch if event.branch in own_branches(policy) else ""
        action = {"full": "compute"}.get(event.action, event.action)
        assert done.setdefault(f"{branch} {event.region}".strip(), {}).setdefault(event.step, action) == action
    assert done.keys() <= plans.keys()
    for view, actions in done.items():
        foreseen = [cell.action for cell in plans[view].cells]
        assert foreseen == [actions[step] for step in range(STEPS)] == [reason.action for reason in why[view]], view
    assert "reuse" in {action for actions in done.values() for action in actions.values()}
