"""Summaries and traces by themselves: what is counted of which events, what is told of it, what is written and read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mccompile.language.load import load_policy
from mccompile.lowering.measured import MeasuredRow
from mccompile.policy.groups import own_branches
from mccompile.runtime.decided import Decided
from mccompile.runtime.errors import TraceMalformed
from mccompile.runtime.finite import NOT_FINITE
from mccompile.runtime.summary import LatestRun, Ran, Share, summarise
from mccompile.runtime.trace import Event, by_cell, read_jsonl, share_computed, write_jsonl


def happened(**more: object) -> Event:
    values = {
        "request": "run", "row": 0, "branch": "cond", "sample": 0, "chunk": 0, "step": 0, "phase": "all",
        "action": "full", "computed": 4, "tokens": 4, "why": "warmup", **more,
    }  # fmt: skip
    return Event(**values)  # type: ignore[arg-type]


REUSED = {"action": "reuse", "computed": 0, "why": "cheap"}
TEACACHE = load_policy("teacache")


def ran(**more: object) -> Ran:
    return Ran(**{"name": "", "policy": TEACACHE, "notes": (), "first": 0, "last": 3, **more})  # type: ignore[arg-type]


def test_a_summary_counts_the_latest_request_alone() -> None:
    before = happened(request="before", **REUSED)
    events = [before, happened(), happened(row=1, step=1, phase="rest", **REUSED), happened(row=1, step=1, phase="")]
    found = summarise([ran()], events)
    assert (found.policy, found.steps, found.complete, found.computed) == ("teacache", 2, False, 8 / 12)
    assert (found.phases, found.why) == ({"all": 1.0, "rest": 0.0}, {"warmup": 2, "cheap": 1})
    assert (found.reuses, found.may_reuse, found.inert, found.experts) == (True, True, "", {})
    both = summarise([ran()], events, ("before", "run"))
    assert (both.steps, both.why["cheap"]) == (3, 2)
    assert summarise([ran()], [before, happened()], ("before",)).why == {"cheap": 1}


def test_a_run_is_complete_when_its_last_step_was_made() -> None:
    parts = [ran(name="one", first=0, last=1), ran(name="two", first=2, last=3)]
    events = [happened(step=0), happened(row=1, step=1, **REUSED), happened(row=2, step=2, **REUSED)]
    found = summarise(parts, events)
    assert (found.complete, found.policy) == (False, "teacache")
    assert found.experts == {"one": Share(0, 1, 0.5), "two": Share(2, 3, 0.0)}
    assert summarise(parts, [*events, happened(row=3, step=3)]).complete is True
    assert summarise(parts, [*events, happened(row=3, step=4)]).complete is True
    other = replace(TEACACHE, name="other")
    assert summarise([parts[0], ran(policy=other)], events).policy == "teacache and other"


def test_results_that_were_not_finite_are_counted_by_call() -> None:
    events = [happened(why=NOT_FINITE), happened(why=NOT_FINITE, chunk=1), happened(why=NOT_FINITE, branch="uncond")]
    found = summarise([ran(odd=1), ran(odd=2)], events)
    assert found.odd == 5
    assert found.warnings[-1] == "the results of 5 calls were not finite; nothing of them was kept"
    assert summarise([ran()], [happened(**REUSED)]).warnings == ()


def test_what_is_told_of_a_policy_without_effect() -> None:
    found = summarise([ran(notes=("one",)), ran(name="two", notes=("one", "odd"))], [happened()])
    assert found.notes == ("one", "two: one", "two: odd")
    assert found.inert == "policy teacache reused nothing in 1 steps: one; two: one; two: odd"
    assert found.warnings == (found.inert,)
    assert summarise([ran()], [happened()]).inert.endswith("1 steps: its conditions held at none of them")
    acted = summarise([ran(notes=("one",))], [happened(), happened(row=1, action="partial", computed=2)])
    assert (acted.inert, acted.warnings) == ("", ("policy teacache: one",))
    assert summarise([ran(policy=load_policy("exact"))], [happened()]).inert == ""
    assert replace(found, steps=0).inert == ""


def test_ages_are_counted_from_the_last_step_that_computed_something() -> None:
    events = [
        happened(**REUSED), happened(step=1), happened(step=2, **REUSED), happened(step=3, action="partial"),
        happened(step=4, **REUSED), happened(step=5, **REUSED), happened(step=6, action="skip", computed=0),
        happened(step=2, chunk=1), happened(step=5, chunk=1, **REUSED), happened(step=1, branch="uncond", **REUSED),
    ]  # fmt: skip
    assert summarise([ran()], events).ages == {1: 2, 2: 1, 3: 1}


def test_branches_with_rules_of_their_own_that_were_never_called_are_told() -> None:
    own = load_policy("fastercache")
    assert own_branches(own)
    (branch,) = own_branches(own)
    other = "cond" if branch == "uncond" else "uncond"
    note = f"no call of the branch {branch} was made: its rules acted nowhere"
    assert note in summarise([ran(policy=own)], [happened(branch=other)]).notes
    assert note not in summarise([ran(policy=own)], [happened(branch=branch)]).notes


def test_the_words_of_a_summary() -> None:
    values = {MeasuredRow("signal", "drift"): 0.5, MeasuredRow("guard", "vote"): 1.0}
    part = ran(name="one", decided=(Decided(1, values),))
    events = [happened(), happened(row=1, step=1, phase="rest", **REUSED), happened(row=2, step=2, **REUSED)]
    assert str(summarise([part], events)).splitlines() == [
        "teacache: 3 steps, 33.3% of the tokens computed", "one: steps 0 to 3, 33.3%", "phase all: 50.0%",
        "phase rest: 0.0%", "decided by warmup: 1", "decided by cheap: 2", "guard vote: changed 1 decisions",
        "signal drift: 0.5 / 0.5 / 0.5 (1) at 10 / 50 / 90%", "reused at ages in steps: 1 of 1, 1 of 2",
    ]  # fmt: skip
    assert "ages" not in str(summarise([ran()], [happened()]))


def test_the_requests_of_a_generation() -> None:
    """Where the clock tells when a generation is over, requests follow each other until then."""
    run = LatestRun(told=True)
    assert [run.goes_on(name) for name in ("a", "a", "b", "a")] == [False, False, True, True]
    run.over = True
    assert run.goes_on("a") is True  # a request that went on after the end was told
    run.over = True
    assert (run.goes_on("c"), run.requests, run.over) == (False, {"c"}, False)
    alone = LatestRun()
    assert [alone.goes_on(name) for name in ("a", "b")] == [False, False]
    assert alone.requests == {"b"}


def test_events_of_the_regions_of_a_cell_are_put_together() -> None:
    one = happened(region="a", expert="two")
    assert by_cell([one]) == (one,)
    parts = [one, happened(region="b", **REUSED), happened(chunk=1), happened(region="c", why="warmup")]
    together, other = by_cell(parts)
    assert together == happened(
        action="partial", computed=8, tokens=12, why="warmup, cheap", region="", expert="two"
    )
    assert other == happened(chunk=1)
    alike = by_cell([one, happened(region="b", why="other")])[0]
    assert (alike.action, alike.region) == ("full", "")


def test_the_share_of_computed_tokens() -> None:
    assert share_computed([happened(), happened(computed=1, tokens=12)]) == 5 / 16
    assert share_computed([]) == 0.0


def test_events_are_written_and_read_back(tmp_path: Path) -> None:
    events = [happened(), happened(region="a", **REUSED)]
    place = tmp_path / "trace.jsonl"
    write_jsonl(place, events)
    first = place.read_text("utf-8").splitlines()[0]
    assert first.startswith('{"action": "full", "branch": "cond"')
    assert read_jsonl(place) == tuple(events)
    place.write_text(place.read_text("utf-8") + '{"action": 1}\n')
    with pytest.raises(TraceMalformed, match="3"):
        read_jsonl(place)
    for text in ("[" * 100_000, "nothing"):
        place.write_text(text)
        with pytest.raises(TraceMalformed, match="MC0640"):
            read_jsonl(place)
    place.write_bytes(b"\xff\xfe")
    with pytest.raises(TraceMalformed, match="codec"):
        read_jsonl(place)
    with pytest.raises(TraceMalformed, match="no such file") as missing:
        read_jsonl(tmp_path / "none")
    assert ", line" not in str(missing.value)
