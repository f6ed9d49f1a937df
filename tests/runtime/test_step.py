"""One group of regions in one call by itself: who decides, what copies of chunks do, and what stands in for what."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.lowering.host import Flag
from mccompile.lowering.measured import MeasuredRow
from mccompile.lowering.slots import Count
from mccompile.policy.bind import bind
from mccompile.policy.cells import Cell
from mccompile.policy.phases import Grid
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.errors import NoForecast
from mccompile.runtime.layout import Layout
from mccompile.runtime.step import Step
from mccompile.runtime.store import BranchStore, Course, Deciding, History, Recent, States

GRID = Grid(9, tuple(900.0 - 100 * i for i in range(9)), tuple(0.9 - 0.1 * i for i in range(9)))
FULL, REUSE, GRAPH = (Action(kind, 0, None, "") for kind in ("compute", "reuse", "dynamic"))
SKIP, COPY = Action("skip", -1, None, ""), Action("follow", -1, None, "")
PLAIN = "phase all { reuse chunk while accumulate(rel_l1(latent)) < 0.5 }"
WAYS = """phase all { reuse chunk as 2 * kept(residual) while rel_l1(latent) < 0.1
                      reuse chunk as 3 * kept(residual) while rel_l1(latent) < 0.5 reuse chunk while step < 9 }"""


class Graph:
    """A decision graph that computes all tokens, and notes when it is asked."""

    def __init__(self, sees: bool = False, tells: bool = False, counts: tuple[Count, ...] = ()) -> None:
        row = MeasuredRow("signal", "weight")
        self.spec = SimpleNamespace(
            host=(Flag("active"), Flag("forced")), params=(), counts=counts, measured=(MeasuredRow("highest"), row),
            weights=(row,),
        )  # fmt: skip
        self.sees_every_step, self.tells_weights = sees, tells
        self.started, self.finished = 0, list[np.ndarray]()
        self.ways: np.ndarray | None = None

    def start(self, host: np.ndarray, *more: object) -> Deciding:
        self.started += 1
        return Deciding(host, 0, {}, None)  # type: ignore[arg-type]

    def finish(self, decision: Deciding, states: States) -> np.ndarray:
        self.finished.append(decision.host)
        states.measured, states.ways = np.full((1, 2, 3), 0.5, np.float32), self.ways
        return np.ones((1, decision.host.shape[2], 1, 2), bool)


def step(*actions: Action, graph: Graph | None = None, text: str = PLAIN, times: Any = None, **more: Any) -> Step:
    bound = bind(load_policy(Source("p.policy", f"policy p {{ {text} layers blocks[*] {{ keep residual }} }}")), {})
    chunks = times or tuple(ChunkTime(g, "active", 2) for g in range(len(actions)))
    engine: Any = SimpleNamespace(
        decides={"": graph}, video=lambda env: torch.zeros(1), sources=lambda *_: {}, uses_rows=True, vanilla=False,
        lowered=SimpleNamespace(regions=(SimpleNamespace(keep="residual"),)),
    )  # fmt: skip
    vars(engine).update(more.pop("engine", {}))
    store = BranchStore({"": Course(History.empty(bound, 1, len(chunks)))})
    plan: Any = SimpleNamespace(cells=[Cell(0, 0, "compute", (), None), Cell(1, 0, "reuse", (), None)])
    made = Step(
        engine, bound, True, Moment("run", 0, "cond", GRID, chunks, len(chunks)), Layout(1, len(chunks), 1, 2), store,
        plan, (actions,), None, {}, {}, {}, "", "",
    )  # fmt: skip
    return replace(made, **more)


def of_chunks(mask: np.ndarray) -> list[bool]:
    assert (mask[..., :1] == mask).all()
    found: list[bool] = mask[0, :, 0, 0].tolist()
    return found


def test_clock_and_plan_decide_where_they_can() -> None:
    graph = Graph()
    made = step(FULL, REUSE, SKIP, graph=graph)
    made.course.states.measured = np.ones((1, 1, 3))
    assert of_chunks(made.decide({})) == [True, False, False]
    assert of_chunks(made.active()) == [True, True, False]
    assert graph.started == 0
    assert made.course.states.selection is not None
    assert of_chunks(made.course.states.selection) == [True, False, False]
    assert made.course.states.measured is None


@pytest.mark.parametrize(
    ("case", "asked"),
    [
        ("dynamic", True), ("unfolded", True), ("weights", True), ("sees", False), ("sees of data", True),
        ("sees what was not planned", True), ("sees and counts", True), ("sees unfolded", True),
        ("not planned", True), ("not planned and skipped", False), ("plain", False),
    ],
)  # fmt: skip
def test_when_the_graph_is_asked(case: str, asked: bool) -> None:
    """Where data decides; and where it measures something from step to step that a later step may need."""
    graph = Graph("sees" in case, "weights" in case, (Count("total"),) if "counts" in case else ())
    made = step(GRAPH if case == "dynamic" else REUSE, FULL, SKIP, graph=graph)
    if "of data" in case:
        made.plan.cells.append(Cell(2, 0, "dynamic", (), None))  # type: ignore[attr-defined]
    if "not planned" in case:
        made.course.history.planned[0, 2 if "skipped" in case else 0] = False
    mask = replace(made, fold="unfolded" not in case).decide({})
    assert (graph.started, len(graph.finished)) == ((1, 1) if asked else (0, 0))
    assert of_chunks(mask) == ([True, True, True] if asked else [False, True, False])


def test_a_chunk_outside_of_the_call_that_was_not_planned_leaves_the_run_unsettled() -> None:
    graph = Graph(sees=True)
    made = step(REUSE, graph=graph)
    made.course.history.planned = np.array([[True, False]])
    made.decide({})
    assert graph.started == 1


def test_a_decision_that_was_made_ahead_is_taken_over_if_it_is_this_one() -> None:
    for same in (True, False):
        graph = Graph()
        made = step(GRAPH, graph=graph)
        host = np.array([[[1.0], [0.0]]], np.float32)
        ahead = Deciding(host if same else host + 1, 0, {}, None)  # type: ignore[arg-type]
        made.course.states.ahead = ahead
        made.decide({})
        assert (graph.started, made.course.states.ahead) == (int(not same), None)
        assert graph.finished[0].tolist() == host.tolist()


def test_a_branch_follows_the_decision_of_another_and_computes_what_it_must() -> None:
    graph, leader = Graph(), Course(History.empty(step(FULL).bound, 1, 3))
    leader.states = States(
        selection=np.array([[[[True, False]], [[False, False]], [[False, True]]]]), measured=np.ones((1, 1, 3)),
        ways=np.ones((1, 3, 1, 2), np.uint8),
    )  # fmt: skip
    made = step(REUSE, FULL, GRAPH, graph=graph, leader=leader)
    assert made.decide({})[0, :, 0].tolist() == [[True, False], [True, True], [False, True]]
    assert graph.started == 0
    assert made.course.states.measured is leader.states.measured
    assert made.course.states.ways is leader.states.ways
    leader.states.selection = None  # it has not decided anything
    step(GRAPH, graph=graph, leader=leader).decide({})
    assert graph.started == 1


COPIED = (ChunkTime(0, "active", 2), ChunkTime(1, "active", 2), ChunkTime(2, "active", 2, copy_of=1))


@pytest.mark.parametrize(
    ("own", "done", "waits", "copied"),
    [
        (FULL, False, False, True), (REUSE, False, False, True), (FULL, True, False, True), (REUSE, True, False, False),
        (FULL, False, True, True), (REUSE, False, True, False),
    ],
)  # fmt: skip
def test_a_copy_is_computed_where_its_chunk_is_and_all_of_it_the_first_time(
    own: Action, done: bool, waits: bool, copied: bool
) -> None:
    """Where increments alone are kept, it waits for the first computed token of its chunk."""
    regions = (SimpleNamespace(keep=None), SimpleNamespace(keep="increment" if waits else "residual"))
    made = step(
        REUSE if own is FULL else FULL, own, COPY, times=COPIED, engine={"lowered": SimpleNamespace(regions=regions)}
    )
    made.course.history.copies = {(0, 1)} if done else {(0, 0), (1, 1)}
    assert of_chunks(made.decide({})) == [own is REUSE, own is FULL, copied]


def test_a_copy_has_the_tokens_of_its_chunk() -> None:
    leader = Course(History.empty(step(FULL).bound, 1, 3))
    leader.states.selection = np.array([[[[False, False]], [[True, False]], [[False, False]]]])
    made = step(REUSE, REUSE, COPY, times=COPIED, leader=leader)
    made.course.history.copies = {(0, 1)}
    assert made.decide({})[0, 2, 0].tolist() == [True, False]
    made.course.history.copies = set()
    assert made.decide({})[0, 2, 0].tolist() == [True, True]


def test_by_which_alternative_each_chunk_is_reused() -> None:
    """The plan says it, or the graph; a copy has that of its chunk. Without rows, the latest stands in everywhere."""
    graph = Graph()
    graph.ways = np.full((1, 3, 1, 2), 2, np.uint8)
    for rows, expected in ((True, [1, 2, 2]), (False, [2, 2, 2])):
        made = step(
            replace(REUSE, way=1), GRAPH, COPY, graph=graph, text=WAYS, times=COPIED, engine={"uses_rows": rows}
        )
        made.decide({})
        ways = made.course.states.ways
        assert ways is not None
        assert (ways.dtype, ways[0, :, 0, 0].tolist()) == (np.uint8, expected)
    planned = step(replace(REUSE, way=1), FULL, graph=graph, text=WAYS)
    planned.decide({})
    assert planned.course.states.ways is not None
    assert planned.course.states.ways[0, :, 0, 0].tolist() == [1, 0]
    plain = step(REUSE, graph=graph)
    plain.decide({})
    assert plain.course.states.ways is None


def test_what_stands_in_is_that_of_the_alternative_or_of_the_layers() -> None:
    layers = ir.Forecast(((ir.Const(7.0),),))
    made = step(REUSE, FULL, COPY, text=WAYS, times=(COPIED[0], COPIED[1], replace(COPIED[2], copy_of=0)))
    first, second = made.bound.ir.phases[0].rule.stand_ins[:2]  # type: ignore[union-attr, index]
    both = np.ones((1, 2), bool)
    assert made.standing(0, 0, both, layers) == ((0, layers),)  # no alternative is known
    made.course.states.ways = np.array([[[[0, 2]], [[1, 1]], [[1, 0]]]], np.uint8)
    assert made.standing(0, 0, both, layers) == ((0, first), (2, layers))
    assert made.standing(0, 0, np.array([[False, True]]), layers) == ((2, layers),)
    assert made.standing(0, 1, both, None) == ((1, second),)
    assert made.standing(0, 2, both, layers) == ((0, first), (1, second))
    assert replace(made, actions=((SKIP, SKIP, COPY),)).standing(0, 0, both, layers) == ((0, layers),)
    plain = step(REUSE)
    plain.course.states.ways = made.course.states.ways
    assert plain.standing(0, 0, both, layers) == ((0, layers),)


def test_what_stands_in_is_said_with_the_reason() -> None:
    made = step(REUSE, REUSE, text=WAYS)
    assert made.said(0, 0) == ""
    made.course.states.ways = np.array([[[[0, 2]], [[2, 2]]]], np.uint8)
    assert made.said(0, 0) == ""
    made.course.states.selection = np.zeros((1, 2, 1, 2), bool)
    assert "2 * kept(residual)" in made.said(0, 0)
    assert made.said(0, 0).endswith(", as it was kept")
    assert made.said(0, 1) == ""  # the layers say it
    made.course.states.selection[0, 0, 0, 1] = True
    assert not made.said(0, 0).endswith(", as it was kept")


def region(weights: tuple[tuple[float, ...], ...] = ((1.0,), (2.0, -1.0)), depth: int = 2, **more: Any) -> Any:
    forecast = ir.Forecast(tuple(tuple(map(ir.Const, row)) for row in weights))
    made = {"forecasts": True, "depth": depth, "passes": 0, "forecast": forecast, "nearest": None, "keep": "residual"}
    return SimpleNamespace(**{**made, **more})


def test_weights_are_those_of_each_chunk_that_reuses_something() -> None:
    made = step(REUSE, REUSE, SKIP, times=(*COPIED[:2], ChunkTime(2, "pending", 0)))
    recent = made.course.history.recent
    recent[0, 0, False] = Recent(np.array([[[1, 1]], [[0, -1]]]))
    recent[0, 1, False] = Recent(np.array([[[1, 1]], [[0, 0]]]))
    mask = np.zeros((1, 3, 1, 2), bool)
    found = made.weights(region(), mask)
    assert found is not None
    assert [np.array(w)[0].tolist()[:4] for w in found.values] == [[2, 1, 2, 2], [-1, 0, -1, -1]]
    mask[0, 0] = True  # all of it is computed: what it would read does not matter
    found = made.weights(region(), mask)
    assert found is not None
    assert found.values == (2.0, -1.0)
    mask[0, 1] = True
    assert made.weights(region(), mask) is None
    assert made.weights(region(forecasts=False), np.zeros_like(mask)) is None
    together = replace(made, engine=SimpleNamespace(uses_rows=False, decides={"": None}))  # type: ignore[arg-type]
    found = together.weights(region(), np.zeros_like(mask))
    assert found is not None
    assert np.array(found.values[0]).tolist() == [[2, 1, 2, 1, 2, 1]]  # those of the first one hold for all


def test_each_token_is_weighed_by_its_own_alternative() -> None:
    made = step(REUSE, text=WAYS)
    made.course.history.recent[0, 0, False] = Recent(np.array([[[1, 1]], [[0, 0]]]))
    made.course.states.ways = np.array([[[[1, 2]]]], np.uint8)
    found = made.weights(region(), np.zeros((1, 1, 1, 2), bool))
    assert found is not None
    assert [np.array(weight).tolist() for weight in found.values] == [[[3, 2]], [[0, -1]]]


def test_signals_that_weigh_stand_ins_are_told_by_their_names() -> None:
    """They are those that the graph has measured of each chunk; none where it was not asked, or where there is none."""
    made = step(REUSE, REUSE, graph=Graph())
    assert made._told(0, 1) == {}
    made.course.states.measured = np.array([[[1.0, 2.0], [3.0, 4.0]]], np.float32)
    assert made._told(0, 1) == {"weight": 4.0}
    assert replace(made, view="clock", engine=SimpleNamespace(decides={"clock": None}))._told(0, 1) == {}  # type: ignore[arg-type]


def test_images_behind_the_tokens_have_no_steps_of_their_own() -> None:
    made = step(REUSE)
    made.course.history.recent[0, 0, False] = Recent(np.array([[[1, 1]], [[0, -1]]]))
    behind = replace(made, layout=replace(made.layout, behind=2))
    mask = np.zeros((1, 1, 1, 2), bool)
    with pytest.raises(NoForecast, match="images that are given lie behind them"):
        behind.weights(region(), mask)
    made.course.history.recent[0, 0, False] = Recent(np.array([[[1, 1]], [[0, 0]]]))
    assert behind.weights(region(), mask) is not None
    with pytest.raises(NoForecast, match="tokens take from each other"):
        behind.fill(region(nearest="latent"), mask, {})
    assert behind.fill(region(nearest=None), mask, {}) is None
    assert behind.fill(region(nearest="latent"), ~mask, {}) is None
