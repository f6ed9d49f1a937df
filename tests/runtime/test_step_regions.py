"""The regions of one call by themselves: which are computed, on which rows, and what stands in for the others."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile import ir
from mccompile.lowering.measured import MeasuredRow
from mccompile.lowering.sources import Located, VideoStream
from mccompile.lowering.types import LoweredRegion
from mccompile.runtime import step as module
from mccompile.runtime.actions import Action
from mccompile.runtime.errors import NoForecast
from mccompile.runtime.layout import Layout
from mccompile.runtime.rows import NO_WORTH
from mccompile.runtime.step import Step, run
from mccompile.runtime.store import Memory, Recent, States
from tests.runtime.test_step import COPIED, COPY, FULL, GRAPH, REUSE, SKIP, WAYS, Graph, step

YES, NO = np.ones((1, 1, 1, 2), bool), np.zeros((1, 1, 1, 2), bool)
HALF = np.array([[[[True, False]]]])


def region(keep: Any = "residual", group: str = "", **more: Any) -> LoweredRegion:
    return LoweredRegion(0, 0, keep, (("x", "y"),), group=group, **more)


class Group:
    """A step of one group that notes what is done, in the list of the call."""

    def __init__(
        self, engine: Any, mask: np.ndarray, done: list[Any], active: np.ndarray = YES, group: str = ""
    ) -> None:
        self.engine, self._mask, self.done, self._active, self.group = engine, mask, done, active, group
        self.entry, self.inputs, self.shared, self.layout = {"x": 0}, {}, {}, Layout(1, 1, 1, 2)
        self.bound = SimpleNamespace(reach=None)
        self.course = SimpleNamespace(states=SimpleNamespace(clear_accounts=lambda: done.append(("cleared", group))))

    def decide(self, env: Any) -> np.ndarray:
        self.done.append(("decide", self.group, dict(env)))
        return self._mask

    def active(self) -> np.ndarray:
        return self._active

    def keep(self, region: Any, number: int, before: Any, after: Any) -> None:
        self.done.append(("keep", self.group, number, dict(before), dict(after)))

    def reuse(self, region: Any, number: int, env: Any, mask: np.ndarray) -> Any:
        self.done.append(("reuse", self.group, number, mask.tolist()))
        return {**env, "y": "kept"}

    def weights(self, region: Any, mask: np.ndarray) -> Any:
        return ("weights", mask.tolist())

    def fill(self, region: Any, mask: np.ndarray, env: Any) -> Any:
        return ("fill", self.group, mask.tolist())

    def merge(self, number: int, region: Any, env: Any, chosen: Any, weights: Any) -> Any:
        self.done.append(("merge", self.group, number, chosen, weights))
        return {**env, f"y{number}": number}


def engine(*regions: LoweredRegion, rows: bool = False, whole: Any = None) -> Any:
    """One whose blocks count the regions that they have run."""
    blocks = SimpleNamespace(run_plain=lambda region, env, shared: {**env, "runs": env.get("runs", 0) + 1})
    prefixes = SimpleNamespace(seen=lambda inputs, layout, reach: "seen")
    return SimpleNamespace(
        uses_rows=rows, whole=whole, blocks=blocks, prefixes=prefixes, lowered=SimpleNamespace(regions=regions)
    )


def called(engine: Any, **masks: np.ndarray) -> tuple[Any, Any, list[Any]]:
    done = list[Any]()
    env, found = run({name: Group(engine, mask, done, group=name) for name, mask in masks.items()})  # type: ignore[misc]
    return env, {name: mask.tolist() for name, mask in found.items()}, done


def test_all_rows_of_a_region_are_computed_where_any_cell_asks_for_it() -> None:
    made = engine(region(None), region(group="a"), region(group="a"), region(group="b"), region(None))
    env, masks, done = called(made, a=HALF, b=NO)
    assert env == {"x": 0, "runs": 4, "y": "kept"}
    assert masks == {"a": YES.tolist(), "b": NO.tolist()}
    kinds = [(kind, group) for kind, group, *_ in done]
    assert kinds == [
        ("keep", "a"), ("decide", "a"), ("keep", "a"), ("keep", "a"), ("decide", "b"), ("reuse", "b"), ("keep", "a"),
        ("cleared", "a"),
    ]  # fmt: skip
    assert done[1][2] == {"x": 0, "runs": 1}  # it is decided by the streams before the first region of the group
    assert done[2][2:] == (1, {"x": 0, "runs": 1}, {"x": 0, "runs": 2})
    assert done[5][2:] == (3, NO.tolist())


def test_where_tokens_take_from_each_other_all_of_them_are_computed() -> None:
    env, masks, _ = called(engine(region(group="a", nearest="latent")), a=NO)
    assert (env["runs"], masks) == (1, {"a": NO.tolist()})


def test_a_group_without_regions_of_its_own_counts_as_computed() -> None:
    _, masks, done = called(engine(region(group="a")), a=NO, b=NO)
    assert masks == {"a": NO.tolist(), "b": YES.tolist()}
    assert done[-1] == ("cleared", "b")


@pytest.mark.parametrize("rows", [True, False])
def test_nothing_runs_where_the_output_of_the_model_stands_in(rows: bool) -> None:
    """The group of the whole model is decided first; where it computes, layers within it decide for themselves."""
    whole = SimpleNamespace(group="model")
    env, masks, done = called(engine(region(group="a"), rows=rows, whole=whole), model=NO, a=YES)
    assert (env, masks) == ({"x": 0}, {"model": NO.tolist(), "a": NO.tolist()})
    assert [(kind, group) for kind, group, *_ in done] == [("decide", "model")]


def test_layers_compute_no_more_than_the_model_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "selected", lambda *given: given[1:])
    whole = SimpleNamespace(group="model")
    made = engine(region(group="a"), region(group="model"), rows=True, whole=whole)
    _, masks, done = called(made, model=HALF, a=np.array([[[[True, True]]]]))
    assert [group for kind, group, *_ in done if kind == "decide"] == ["model", "a"]
    assert masks == {"model": HALF.tolist(), "a": HALF.tolist()}
    _, masks, _ = called(made, model=HALF, a=~HALF)
    assert masks["a"] == NO.tolist()
    alone = engine(region(group="model"), rows=True, whole=whole)
    _, masks, done = called(alone, model=HALF)
    assert masks == {"model": HALF.tolist()}
    assert [kind for kind, *_ in done] == ["decide", "merge"]


def test_every_region_runs_on_the_rows_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions that are always computed run on all active chunks; rows are selected once for each group."""
    asked = list[Any]()

    def selected(blocks: Any, flat: np.ndarray, seen: Any, env: Any, shared: Any, fill: Any, worth: Any) -> str:
        asked.append((flat.tolist(), seen, dict(env), fill, worth is NO_WORTH))
        return f"rows {len(asked)}"

    monkeypatch.setattr(module, "selected", selected)
    made = engine(region(None), region(group="a"), region(group="b"), region(group="a"), region(None), rows=True)
    done = list[Any]()
    steps: Any = {
        "a": Group(made, HALF, done, group="a"), "b": Group(made, NO, done, NO, "b"),
        "c": Group(made, NO, done, NO, "c"),
    }  # fmt: skip
    env, masks = run(steps)
    merged = [one[1:] for one in done if one[0] == "merge"]
    assert [(group, number, chosen) for group, number, chosen, _ in merged] == [
        ("a", 0, "rows 1"), ("a", 1, "rows 2"), ("b", 2, "rows 3"), ("a", 3, "rows 2"), ("a", 4, "rows 1"),
    ]  # fmt: skip
    assert [weights for *_, weights in merged] == [
        None, ("weights", HALF.tolist()), ("weights", NO.tolist()), ("weights", HALF.tolist()), None,
    ]  # fmt: skip
    assert asked == [
        ([[True, True]], "seen", {"x": 0}, ("fill", "a", YES.tolist()), True),
        ([[True, False]], "seen", {"x": 0, "y0": 0}, ("fill", "a", HALF.tolist()), True),
        ([[False, False]], "seen", {"x": 0, "y0": 0, "y1": 1}, ("fill", "b", NO.tolist()), True),
    ]
    assert [one[1] for one in done if one[0] == "decide"] == ["a", "b"]
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "a": HALF.tolist(), "b": NO.tolist(), "c": YES.tolist(),
    }  # fmt: skip
    assert env == {"x": 0, **{f"y{n}": n for n in range(5)}}


X = torch.arange(4.0).view(1, 2, 2)


def blocks() -> Any:
    """What keeps results as they are, and reads them back."""
    return SimpleNamespace(
        kept_values=lambda kept, like: kept, token_axis=lambda name: 1,
        kept_of=lambda region, number, before, after: {(number, made): after[made] for _, made in region.pairs},
    )  # fmt: skip


def test_a_region_that_is_reused_gives_what_was_kept() -> None:
    made = step(FULL, engine={"blocks": blocks()})
    memory = made.store.memory
    memory.kept = {(3, "y"): X + 1, (3, "new"): X + 2}
    pairs = ("x", "y"), ("", "new")
    found = made.reuse(LoweredRegion(0, 0, "residual", pairs), 3, {"x": X}, NO)
    assert torch.equal(found["y"], 2 * X + 1)
    assert torch.equal(found["new"], X + 2)
    assert found["x"] is X
    found = made.reuse(LoweredRegion(0, 0, "output", pairs), 3, {"x": X}, NO)
    assert torch.equal(found["y"], X + 1)
    passed = made.reuse(LoweredRegion(0, 0, "increment", pairs), 3, {"x": X}, NO)
    assert set(passed) == {"x", "y"}
    assert passed["y"] is X


def test_what_a_reused_region_gives_is_noted_where_a_forecast_reads_it() -> None:
    made = step(REUSE, engine={"blocks": blocks()})
    made.store.memory.kept = {(0, "y"): X}
    one = ((ir.Const(1.0),),)
    of = LoweredRegion(0, 0, "output", (("x", "y"),), forecast=ir.Forecast(one, ((ir.Const(0.0),),)))
    made.reuse(of, 0, {"x": X}, NO)
    assert list(made.store.memory.passed) == [(0, "y")]


def test_results_are_kept_whole_where_they_may_be_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list[Any]()
    monkeypatch.setattr(module, "keep_whole", lambda *given: kept.append(given))
    made = step(FULL, engine={"blocks": "blocks"})
    of = region()
    made.keep(of, 2, {"x": 1}, {"y": 2})
    assert kept == [("blocks", of, 2, {"x": 1}, {"y": 2}, made.store.memory)]
    for other in (region(None), region("increment"), region(nearest="latent")):
        made.keep(other, 2, {}, {})
    step(FULL, engine={"vanilla": True}).keep(of, 2, {}, {})
    assert len(kept) == 1


def test_tokens_are_compared_where_they_take_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = torch.randn(1, 1, 1, 2, 3)
    monkeypatch.setattr(Step, "compared", lambda self, source, env: cells)
    made, of = step(FULL), region(nearest="latent")
    fill = made.fill(of, HALF, {})
    assert fill is not None
    assert fill(np.array([0]), torch.tensor([0]), None).taken.tolist() == [[0, 0]]
    assert made.fill(of, YES, {}) is None
    assert made.fill(region(), HALF, {}) is None
    behind = step(FULL, layout=Layout(1, 1, 1, 2, behind=1))
    assert behind.fill(of, YES, {}) is None
    with pytest.raises(NoForecast, match="images that are given lie behind them"):
        behind.fill(of, HALF, {})


def test_what_tokens_are_compared_by_lies_in_their_cells() -> None:
    asked = list[Any]()
    where = Located("embedded", VideoStream(), "tokens", 1, (1, 1, 1))
    value = torch.arange(8.0).view(1, 4, 2)
    more = {
        "lowered": SimpleNamespace(located={"embedded": where}),
        "source": lambda *given: (asked.append(given), value)[1],
    }
    made = step(FULL, FULL, engine=more)
    found = made.compared("embedded", {"x": 1})  # type: ignore[arg-type]
    assert found.tolist() == value.view(1, 2, 1, 2, 2).tolist()
    assert asked == [(where, made.inputs, made.shared, {"x": 1}, "")]


def test_a_region_is_merged_with_what_is_looked_at_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()
    monkeypatch.setattr(module, "merge", lambda *given: (asked.append(given), {"y": 1})[1])
    made, of = step(FULL, engine={"blocks": "blocks", "watched": ("a", "b")}), region()
    assert made.merge(2, of, {"x": 1}, ("rows",), None) == {"y": 1}  # type: ignore[arg-type, dict-item]
    assert asked == [("blocks", of, 2, {"x": 1}, made.shared, ("rows",), made.store.memory, None, ("a", "b"))]
    assert made.memory is made.store.memory
    assert made.course is made.store.courses[""]


def test_what_a_decision_measured_is_told_by_the_names_of_signals() -> None:
    graph = Graph()
    made = step(FULL, REUSE, graph=graph)
    assert made._told(0, 1) == {}
    made.course.states.measured = np.array([[[1.0, 2.0], [3.0, 4.0]]], np.float32)
    assert graph.spec.measured.index(MeasuredRow("signal", "weight")) == 1
    assert made._told(0, 1) == {"weight": 4.0}
    assert step(FULL)._told(0, 0) == {}


def test_tokens_are_reused_by_the_alternatives_that_were_chosen_for_them() -> None:
    made = step(REUSE, COPY, text=WAYS, times=(COPIED[0], replace(COPIED[2], chunk=1, copy_of=0)))
    rule = made.bound.ir.phases[0].rule
    assert isinstance(rule, ir.Reuse)
    assert rule.stand_ins is not None
    layers = ir.Forecast(((ir.Const(7.0),),))
    assert made.standing(0, 0, np.ones((1, 2), bool), layers) == ((0, layers),)  # nobody has said which
    made.course.states.ways = np.array([[[[0, 2]], [[1, 1]]]], np.uint8)
    assert made.standing(0, 0, np.ones((1, 2), bool), layers) == ((0, rule.stand_ins[0]), (2, layers))
    assert made.standing(0, 0, np.array([[True, False]]), layers) == ((0, rule.stand_ins[0]),)
    assert made.standing(0, 1, np.ones((1, 2), bool), None) == ((1, rule.stand_ins[1]),)
    pending = step(SKIP, text=WAYS)
    pending.course.states.ways = made.course.states.ways[:, :1]
    assert pending.standing(0, 0, np.ones((1, 2), bool), layers) == ((0, layers),)
    plain = step(REUSE)
    plain.course.states.ways = np.zeros((1, 1, 1, 2), np.uint8)
    assert plain.standing(0, 0, np.ones((1, 2), bool), None) == ((0, None),)


def test_tokens_of_which_none_is_reused_by_an_alternative_have_the_first_ones_weights() -> None:
    made = step(REUSE, text=WAYS)
    made.course.history.recent[0, 0, False] = Recent(np.zeros((2, 1, 2), np.int64))
    made.course.states.ways = np.array([[[[0, 1]]]], np.uint8)
    of = LoweredRegion(0, 0, "residual", (("x", "y"),), of_rules=(ir.Forecast(((ir.Const(2.0),),)),))
    found = made.weights(of, np.array([[[[False, True]]]]))
    assert found is not None
    assert found.values == (2.0,)


def test_what_a_branch_follows_says_by_which_alternative_tokens_are_reused() -> None:
    leader = step(REUSE, text=WAYS).course
    leader.states.selection = np.zeros((1, 1, 1, 2), bool)
    leader.states.ways = np.full((1, 1, 1, 2), 2, np.uint8)
    made = step(REUSE, text=WAYS, leader=leader)
    made.decide({})
    assert made.course.states.ways is leader.states.ways


def test_what_the_graph_decided_counts_for_chunks_that_it_decides() -> None:
    graph = Graph()
    graph.ways = np.full((1, 2, 1, 2), 2, np.uint8)
    made = step(FULL, GRAPH, graph=graph, text=WAYS)
    made.decide({})
    assert made.course.states.ways is not None
    assert made.course.states.ways[0, :, 0, 0].tolist() == [0, 2]
    assert made._ways(None)[0, :, 0, 0].tolist() == [0, 0]


def test_states_and_memory_begin_empty() -> None:
    assert (States().selection, States().ways, Memory().outputs) == (None, None, None)
    assert Action("follow", -1, None, "").runs is False
