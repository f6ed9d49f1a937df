"""What a generation came to: a policy that could not act says so, and what finished generations left can be freed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mccompile import ir
from mccompile.ir import Phase, Rest, StepMask
from mccompile.language.load import load_policy
from mccompile.lowering.measured import MeasuredRow
from mccompile.runtime import runner
from mccompile.runtime.decided import Decided, Spread
from mccompile.runtime.finite import NOT_FINITE
from mccompile.runtime.summary import Ran, Share, summarise
from mccompile.runtime.trace import Event, by_cell
from tests.runtime.conftest import Tiny
from tests.runtime.test_laws import MOTION, compiled


def test_a_run_says_what_had_no_effect(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """Fewer steps than warm-up: nothing is reused, and the reason is told. More steps: the shares add up."""
    model = compiled(tiny, MOTION, warmup=5)
    tiny.run(num_inference_steps=4, num_frames=13)
    short = model.summary()
    assert short.inert.startswith("policy motion reused nothing in ")
    assert "phase coarse is never reached in 4 steps; phase fine is never reached in 4 steps" in short.inert
    assert str(short).endswith(short.inert)
    assert caplog.messages == [short.inert]
    model.set_parameters(warmup=2)
    tiny.run(num_inference_steps=8, num_frames=13)
    longer = model.summary()
    assert longer.inert == ""
    assert caplog.messages == [short.inert]
    assert set(longer.phases) == {"warmup", "coarse", "fine"}
    assert longer.phases["warmup"] == 1.0
    assert longer.computed < 1.0
    assert sum(longer.why.values()) == sum(e.request == model.events[-1].request for e in model.events)


def test_what_is_meant_to_compute_is_not_called_idle(tiny: Tiny) -> None:
    model = compiled(tiny, "exact")
    assert model.summary().inert == ""
    tiny.run(num_inference_steps=2, num_frames=13)
    assert model.summary().inert == ""


def test_a_mask_that_computes_every_step_is_not_called_idle(tiny: Tiny) -> None:
    """It measures a run, as the cost table of a search does. A mask with a reuse is told where it had none."""
    model = compiled(tiny, "exact")
    tiny.run(num_inference_steps=2, num_frames=13)
    for compute, inert in ((True,) * 9, False), ((True,) * 8 + (False,), True):
        masked = replace(load_policy("exact"), phases=(Phase("all", Rest(), StepMask(compute)),))
        ran = Ran("", masked, (), first=0, last=1)
        assert bool(summarise([ran], model.events).inert) is inert


def test_finished_generations_are_freed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are bounded by themselves; `clear` frees them, the stores and what was made of the inputs."""
    monkeypatch.setattr(runner, "EVENTS_KEPT", 10)
    model, counts = compiled(tiny, MOTION), []
    for _ in range(3):
        tiny.run(num_inference_steps=2, num_frames=13)
        counts.append(len(model.events))
    assert counts[2] == counts[1] == counts[0] + 10
    model.clear()
    assert (model.events, model.runner.requests) == ([], {})
    assert all(not group.results for group in model.runner.engine.values._groups)


def course(actions: str, chunk: int = 0, branch: str = "cond", request: str = "run", why: str = "plan") -> list[Event]:
    """What happened to a chunk of ten tokens, a letter for each step: full, partial (4 tokens), reuse, skip."""
    names, tokens = {"f": "full", "p": "partial", "r": "reuse", "s": "skip"}, {"f": 10, "p": 4, "r": 0, "s": 0}
    return [
        Event(request, step, branch, 0, chunk, step, "early" if step < 2 else "late", names[a], tokens[a], 10, why)  # type: ignore[arg-type]
        for step, a in enumerate(actions)
    ]


def ran(policy: str = "teacache", first: int = 0, last: int = 4, **more: object) -> Ran:
    return Ran("", load_policy(policy), (), first, last, **more)  # type: ignore[arg-type]


def test_shares_and_ages_are_counted_from_the_events() -> None:
    """Ages are those of each chunk and branch by itself; an earlier request counts for nothing."""
    earlier = course("rrrrr", request="before")
    found = summarise([ran()], [*earlier, *course("frrpr"), *course("sfrrr", chunk=1), *course("fffff", branch="un")])
    assert (found.policy, found.steps, found.complete, found.reuses, found.may_reuse) == (
        "teacache", 5, True, True, True,
    )  # fmt: skip
    assert found.computed == (14 + 10 + 50) / 150
    assert found.phases == {"early": (10 + 10 + 20) / 60, "late": (4 + 30) / 90}
    assert found.ages == {1: 3, 2: 2, 3: 1}
    assert found.why == {"plan": 15}
    assert summarise([ran()], course("rfsr")).ages == {2: 1}
    assert found.inert == ""
    lines = str(found).splitlines()
    assert lines[0] == "teacache: 5 steps, 49.3% of the tokens computed"
    assert lines[-1] == "reused at ages in steps: 3 of 1, 2 of 2, 1 of 3"


def test_what_happened_in_all_regions_of_a_chunk_is_one_event() -> None:
    front, rear = (
        [replace(event, region=name, why=name) for event in course(actions)]
        for name, actions in (("front", "ffrp"), ("rear", "frrp"))
    )
    found = by_cell([*front, *course("s", chunk=1), *rear])
    assert [(e.step, e.chunk, e.action, e.computed, e.tokens) for e in found] == [
        (0, 0, "full", 20, 20), (1, 0, "partial", 10, 20), (2, 0, "reuse", 0, 20), (3, 0, "partial", 8, 20),
        (0, 1, "skip", 0, 10),
    ]  # fmt: skip
    assert {(e.why, e.region) for e in found if e.chunk == 0} == {("front, rear", "")}


@pytest.mark.parametrize(("actions", "complete", "reuses"), [("fff", False, False), ("ffpf", True, True)])
def test_a_part_of_a_run_is_not_called_complete(actions: str, complete: bool, reuses: bool) -> None:
    found = summarise([ran(last=3)], course(actions))
    assert (found.complete, found.reuses) == (complete, reuses)
    assert bool(found.inert) is not reuses
    noted = summarise([replace(ran(last=3), notes=("odd",))], course(actions))
    assert noted.warnings == (("policy teacache: odd",) if reuses else (noted.inert,))
    assert summarise([ran()], []).inert == ""


def test_calls_whose_results_were_not_finite_are_counted_once() -> None:
    odd = [*course("f", why=NOT_FINITE), *course("f", chunk=1, why=NOT_FINITE), *course("f", branch="un")]
    found = summarise([ran(odd=2)], odd)
    assert found.odd == 3
    assert found.warnings[-1] == "the results of 3 calls were not finite; nothing of them was kept"


def test_experts_have_their_own_shares() -> None:
    parts = [replace(ran(first=0, last=1), name="high"), replace(ran(first=2, last=4), name="low", notes=("odd",))]
    found = summarise(parts, course("ffrpr"))
    assert found.experts == {"high": Share(0, 1, 1.0), "low": Share(2, 4, 4 / 30)}
    assert found.notes == ("low: odd",)
    assert found.policy == "teacache"


FIT = ir.Polynomial(ir.Change("l1", ir.SourceRef("latent"), "step", ir.Granularity.CHUNK), (2.0, -1.0))


def test_what_decisions_were_made_by_is_spread_and_counted() -> None:
    rows = {
        "drift": MeasuredRow("signal", "drift"), "account": MeasuredRow("highest"),
        "debt": MeasuredRow("highest", "debt"), "lowest": MeasuredRow("lowest"), "hold": MeasuredRow("guard", "hold"),
        "vote": MeasuredRow("guard", "vote"), "fit": MeasuredRow("fit", "", FIT),
        "fitted": MeasuredRow("fitted", "", FIT),
    }  # fmt: skip
    told = [
        {"drift": 1.0, "account": 5.0, "debt": 7.0, "lowest": -3.0, "hold": 1.0, "vote": 0.0, "fit": 1.0, "fitted": 1},
        {"drift": 2.0, "account": 5.0, "debt": float("inf"), "lowest": 1.0, "hold": 0.5, "vote": 0.0},
        {"drift": 3.0, "account": float("nan"), "debt": float("nan"), "lowest": 0.0, "fit": -1.0, "fitted": 0.25},
    ]
    decided = tuple(Decided(step, {rows[name]: v for name, v in one.items()}) for step, one in enumerate(told, 4))
    assert [one.finite for one in decided] == [True, False, False]
    found = summarise([ran(decided=decided)], course("frrrr"))
    assert found.signals == {
        "drift": Spread(3, 1.2, 2.0, 2.8), "account": Spread(2, 5.0, 5.0, 5.0),
        "account debt": Spread(1, 7.0, 7.0, 7.0),
    }  # fmt: skip
    assert found.guards == {"hold": 2, "vote": 0}
    fit, account = found.notes
    assert "negative distance at 1 of 2 decisions (-1 for 0.25 at step 6)" in fit
    assert account.startswith("the account was negative at 1 of 3 decisions (down to -3)")
