"""What is known before a call runs: tables of static sources, the next decision, and what a compile sees."""

from __future__ import annotations

import contextlib
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile import ir
from mccompile.capture.errors import CallError
from mccompile.capture.part import Index, RowSource, Shared
from mccompile.capture.types import TokenGrid
from mccompile.lowering.sources import Located
from mccompile.policy.phases import Grid
from mccompile.runtime import ahead, budget, exercise, planning
from mccompile.runtime.actions import Action
from mccompile.runtime.ahead import decide_ahead
from mccompile.runtime.budget import Predictor
from mccompile.runtime.clock import ChunkTime, Moment, Told, Untold
from mccompile.runtime.errors import UnknownTimesteps
from mccompile.runtime.layout import Layout
from mccompile.runtime.planning import make_plans, planned, static_tables
from tests.runtime.test_step import FULL, GRAPH, REUSE, SKIP, Graph, step

GRID = Grid(4, (900.0, 600.0, 300.0, 100.0), (0.9, 0.6, 0.3, 0.1))


CHANGE = ir.Change("rel_l1", ir.SourceRef("time_embedding"), "step", ir.Granularity.STEP)


def lowered(monkeypatch: pytest.MonkeyPatch, gathered: bool = False, **more: Any) -> Any:
    """A model whose time embedding is its timestep in two channels, at every token where it is gathered."""
    gather = SimpleNamespace(takes=(Index(), RowSource("rows")))
    captured = SimpleNamespace(gather=gather if gathered else None, gathered=("embedded",), grid=None)
    made = {"captured": captured, "static": frozenset(), "policy": SimpleNamespace(name="p"), **more}
    made["located"] = {"time_embedding": Located("time_embedding", Shared("embedded"), "constant", 1, (1, 1, 1))}
    asked = list[Any]()

    class Values:
        def __init__(self, captured: Any, names: tuple[str, ...], backend: Any) -> None:
            asked.append(names)
            assert backend(SimpleNamespace(forward=3), None) == 3

        def get(self, inputs: Any) -> Any:
            t = inputs["t"]
            return {"embedded": torch.stack([t, 2 * t], 1)[:, None], "rows": t}

    monkeypatch.setattr(planning, "SharedValues", Values)
    monkeypatch.setattr(planning, "timestep_of", lambda captured: "t")
    monkeypatch.setattr(planning, "static_changes", lambda policy, static: (CHANGE,))
    return SimpleNamespace(**made, asked=asked)


def moved(*timesteps: float) -> list[float]:
    return [0.0, *(abs(b - a) / a for a, b in itertools.pairwise(timesteps))]


def test_a_table_has_how_far_a_static_source_moves_into_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = lowered(monkeypatch), {"t": torch.tensor([5.0, 5.0])}
    (table,) = static_tables(made, GRID, given).values()
    assert table == pytest.approx(moved(*GRID.timesteps))
    assert made.asked == [("embedded",)]
    assert given["t"].tolist() == [5.0, 5.0]
    (told,) = static_tables(made, GRID, given, Told((0.8, 0.4))).values()
    assert told == pytest.approx(moved(0.8, 0.4))
    with pytest.raises(UnknownTimesteps):
        static_tables(made, GRID, given, Untold("nobody knows"))
    monkeypatch.setattr(planning, "static_changes", lambda policy, static: ())
    assert static_tables(made, GRID, given, Untold("nobody knows")) == {}
    assert static_tables(made, Grid(1, (1.0,), (1.0,)), given) == {}


def test_a_single_step_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = static_tables(lowered(monkeypatch), Grid(1, (1.0,), (1.0,)), {"t": torch.ones(1)}).values()
    assert table == (0.0,)


def test_a_few_rows_are_gathered_of_a_source_that_expands_to_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()

    class Gather:
        takes = (Index(), RowSource("rows"))

        def __call__(self, *given: Any) -> Any:
            asked.append(given[0].tolist())
            return (given[1][:, None, None].expand(-1, len(given[0]), 1),)

    monkeypatch.setattr(planning, "stripped", lambda part, wanted: Gather() if wanted == {Shared("embedded")} else None)
    made = lowered(monkeypatch, gathered=True)
    made.located["time_embedding"] = Located("time_embedding", Shared("embedded"), "tokens", 1, (1, 1, 1))
    (table,) = static_tables(made, GRID, {"t": torch.tensor([5.0])}).values()
    assert table == pytest.approx(moved(*GRID.timesteps))
    assert (made.asked, asked[0]) == ([("rows",)], [0, 1])
    made.captured.gathered = ()
    made.located["time_embedding"] = Located("time_embedding", Shared("embedded"), "constant", 1, (1, 1, 1))
    static_tables(made, GRID, {"t": torch.tensor([5.0])})
    assert made.asked[1:] == [("embedded",)]


def test_frames_of_a_static_source_lie_behind_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = lowered(monkeypatch)
    made.captured.grid = TokenGrid("latent", (2, 3, 4), (1, 1, 1), apart=True)
    made.located["time_embedding"] = Located("time_embedding", Shared("embedded"), "tokens", 1, (1, 1, 1))
    given = {"t": torch.full((6,), 5.0), "latent": torch.zeros(2, 1, 3, 1, 2)}
    (table,) = static_tables(made, GRID, given).values()
    assert table == pytest.approx(moved(*GRID.timesteps))


def test_plans_are_folded_where_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()

    def of(kind: str) -> Any:
        return lambda *given: (asked.append((kind, *given)), step(FULL).plan.__class__(notes=(kind,), cells=()))[1]

    monkeypatch.setattr(planning, "sound_plan", of("sound"))
    monkeypatch.setattr(planning, "plan", of("plain"))
    monkeypatch.setattr(planning, "replace", lambda made, notes: notes)

    def without(bound: Any, made: Any, again: Any) -> tuple[str, ...]:
        again("other")
        return ("idle",)

    monkeypatch.setattr(planning, "without_influence", without)
    model: Any = SimpleNamespace(static="static")
    assert planned(model, "bound", GRID, {}, True) == ("sound", "idle")  # type: ignore[arg-type, comparison-overlap]
    assert asked == [("sound", "bound", GRID, {}, "static"), ("plain", "other", GRID, {}, "static", True)]
    asked.clear()
    assert planned(model, "bound", GRID, {}, False) == ("plain", "idle")  # type: ignore[arg-type, comparison-overlap]
    assert asked == [("plain", "bound", GRID, {}, "static", False), ("plain", "other", GRID, {}, "static", False)]
    monkeypatch.setattr(planning, "static_tables", lambda *given: given)
    monkeypatch.setattr(planning, "planned", lambda *given: given)
    assert make_plans(model, {"a": "bound"}, GRID, {"t": 1}, True, None) == {  # type: ignore[dict-item, comparison-overlap]
        "a": (model, "bound", GRID, (model, GRID, {"t": 1}, None), True)
    }


def ready(*actions: Action, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    """A step whose next call has these actions."""
    graph = Graph()
    graph.spec.sources, graph.spec.params = more.pop("sources", ()), ()
    monkeypatch.setattr(ahead, "resolve_all", lambda *given: (actions,))
    monkeypatch.setattr(ahead, "host_rows", lambda *given: ("host", given))
    graph.start = lambda *given: ("decided", given)  # type: ignore[method-assign, assignment, return-value]
    made = step(*[FULL] * len(actions), graph=graph if more.pop("decides", True) else None)
    following = more.pop("following", tuple(ChunkTime(g, "active", 3) for g in range(len(actions))))
    now = Moment("run", 2, more.pop("branch", "cond"), GRID, made.moment.chunks, len(actions), following)
    vars_ = {name: getattr(made, name) for name in made.__dataclass_fields__}
    branches = SimpleNamespace(share_decision=more.pop("leader", None))
    bound = SimpleNamespace(ir=SimpleNamespace(branches=branches), depth=0.5, values={}, number=None)
    assert set(more) <= {"fold"}
    return SimpleNamespace(
        **{**vars_, "moment": now, "bound": bound, "decides": made.decides, "course": made.course, **more}
    )


def test_the_next_call_is_decided_with_what_is_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "parameters", lambda names, bound, device: ("params", device.type))
    cpu = torch.device("cpu")
    of = ready(REUSE, GRAPH, monkeypatch=monkeypatch)
    found: Any = decide_ahead(of, cpu)
    kind, (host, params, sources, states, layout, now) = found
    assert (kind, params, sources, states, layout) == ("decided", ("params", "cpu"), {}, of.course.states, of.layout)
    assert (now.row, now.chunks, now.following) == (3, of.moment.following, None)
    spec, then, actions, _, plan, kept, depth = host[1]
    assert (spec, then, actions, plan, depth) == (of.decides.spec, now, ((REUSE, GRAPH),), of.plan, 0.5)
    assert kept is of.course.history.computed
    assert decide_ahead(ready(REUSE, SKIP, monkeypatch=monkeypatch), cpu) is None  # nothing to decide
    assert decide_ahead(ready(REUSE, SKIP, monkeypatch=monkeypatch, fold=False), cpu) is not None
    for more in (
        {"following": None}, {"sources": ("latent",)}, {"decides": False}, {"leader": "uncond"},
        {"following": (ChunkTime(0, "active", 3),)},
    ):  # fmt: skip
        assert decide_ahead(ready(GRAPH, GRAPH, monkeypatch=monkeypatch, **more), cpu) is None
    assert decide_ahead(ready(GRAPH, monkeypatch=monkeypatch, leader="cond"), cpu) is not None


@pytest.mark.parametrize(("grid", "masked", "chunks", "expected"), [
    (True, False, 2, 6), (False, False, 2, 2), (True, True, 2, 2), (True, False, 1, 1),
])  # fmt: skip
def test_a_call_is_predicted_in_chunks_as_long_as_those_of_the_example(
    grid: bool, masked: bool, chunks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = TokenGrid("latent", (2, 3, 4), (1, 1, 1)) if grid else None
    engine = SimpleNamespace(
        lowered=SimpleNamespace(captured=SimpleNamespace(grid=own)), entry=lambda shared: ("entry", shared),
        values=SimpleNamespace(get=lambda inputs: "shared"),
    )  # fmt: skip

    def first(engine: object, example: object, env: object) -> Moment:
        assert env == ("entry", "shared")
        return Moment("probe", 0, "probe", GRID, tuple(ChunkTime(c, "active", 0) for c in range(chunks)), chunks)

    monkeypatch.setattr(budget, "first_moment", first)
    monkeypatch.setattr(budget, "masked_by_input", lambda captured: masked)
    made: Any = object.__new__(Predictor)
    made._engine = engine
    small, large = ({"latent": torch.zeros(1, 1, frames, 2, 2)} for frames in (4, 13))
    found = made.moment(small, large)
    assert (len(found.chunks), found.total) == (expected, expected)
    assert found.chunks[-1] == ChunkTime(expected - 1, "active", 0)
    assert made.moment(small, {"latent": torch.zeros(1, 1, 1, 2, 2)}).total == (1 if expected == 6 else expected)


def recorded(monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[list[Any], list[Any], Any]:
    """What is exercised, for which roles several samples are recorded, and the model."""
    done, wanted = list[Any](), list[Any]()
    monkeypatch.setattr(exercise, "Engine", lambda lowered, backend: ("engine", backend))
    monkeypatch.setattr(exercise, "exercise", lambda engine, _, calls, *chunks: done.append((engine, calls, *chunks)))

    class Recorder:
        @contextlib.contextmanager
        def several_samples(self, want: Any) -> Any:
            wanted.append([want(SimpleNamespace(part=part)) for part in ("gather", "block", "rows", "prelude")])
            yield

    captured = {"each": (), "samples": ("x",), "model_class": "Model", "unbatched": "a reason"}
    captured |= {name: more.pop(name) for name in captured.keys() & more.keys()}
    made = SimpleNamespace(captured=SimpleNamespace(**captured), together=more.pop("together", None))
    calls = [{"x": torch.ones(1, 2), "n": 3, "y": torch.ones(1)}] * 2
    exercise.record_roles(Recorder(), made, "bound", calls, **more)  # type: ignore[arg-type]
    return done, wanted, made


def test_what_a_compile_sees_of_several_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,), wanted, _ = recorded(monkeypatch, chunks=(1, 2))
    assert (one[2], wanted) == ((1, 2), [])
    (_, (engine, calls)), wanted, _ = recorded(monkeypatch, several=True)
    assert wanted == [[True, True, True, True]]
    assert [call["x"].shape[0] for call in calls] == [4, 6]
    assert [(call["n"], call["y"].shape[0]) for call in calls] == [(3, 1)] * 2
    done, wanted, _ = recorded(monkeypatch, together="cond")
    assert (len(done), wanted) == (2, [[True, True, True, False]])
    (_,), wanted, _ = recorded(monkeypatch, several=True, each=("x",))
    assert wanted == []
    with pytest.raises(CallError, match="one number of samples: a reason"):
        recorded(monkeypatch, several=True, samples=())
    ((engine, *_),), _, _ = recorded(monkeypatch, samples=(), instead=lambda backend: "instead")
    assert engine[1].backend == "instead"


def test_what_data_divides_is_recorded_with_fewer_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def divided(backend: Any, fewer: bool = False) -> Any:
        return SimpleNamespace(backend=backend, fewer=fewer, divided=True)

    monkeypatch.setattr(exercise, "ByPieces", divided)
    (whole, fewer), _, _ = recorded(monkeypatch, chunks=(1, 2), instead=lambda backend: "instead")
    assert ([len(whole[1]), *whole[2]], [len(fewer[1]), *fewer[2]]) == ([2, 1, 2], [1, 1])
    assert (whole[0][1].fewer, fewer[0][1].fewer, fewer[0][1].backend) == (False, True, "instead")


def test_a_first_moment_has_as_many_chunks_as_attention_tells_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "timestep_of", lambda captured: "t")
    monkeypatch.setattr(exercise, "masked_by_input", lambda captured: captured.masked)
    monkeypatch.setattr(exercise, "layout_of", lambda lowered, moment, inputs, stream: len(moment.chunks))
    lengths = list[Any]()

    def seen(inputs: Any, layout: Any) -> np.ndarray:
        lengths.append(layout)
        return np.array([4, 4, 8, 12])

    def engine(grid: Any, masked: bool) -> Any:
        captured = SimpleNamespace(grid=grid, masked=masked)
        return SimpleNamespace(
            lowered=SimpleNamespace(captured=captured), prefixes=SimpleNamespace(lengths=seen), video=lambda env: env
        )

    two: dict[str, Any] = {"t": torch.zeros(1, 2)}
    assert exercise.first_moment(engine("grid", masked=True), two, {}) == exercise.moment_of(2)
    assert lengths == []
    assert exercise.first_moment(engine("grid", masked=True), {"t": torch.zeros(1)}, {}).total == 3
    assert exercise.first_moment(engine("grid", masked=True), {}, {}).total == 3
    assert exercise.first_moment(engine("grid", masked=False), two, {}) == exercise.moment_of(3)
    assert lengths == [1, 1, 1]
    assert exercise.first_moment(engine(None, masked=False), two, {}) == exercise.moment_of(1)
    assert exercise.moment_of(2) == Moment(
        "probe", 0, "probe", Grid(1, (0.0,), (0.0,)), (ChunkTime(0, "active", 0), ChunkTime(1, "active", 0)), 2
    )


@pytest.mark.parametrize(("tokens", "filled"), [(10, 8), (2, 2), (11, 8)])
def test_more_tokens_have_results_than_are_computed_while_roles_are_recorded(tokens: int, filled: int) -> None:
    fill = exercise._taking_first(Layout(3, 1, 1, tokens))
    found = fill(np.array([0]), torch.tensor([0]), None)
    assert (found.filled.tolist(), found.taken.shape, int(found.taken.sum())) == ([*range(filled)], (3, filled), 0)
    assert fill(np.array([0]), torch.tensor([0]), 1).taken.shape == (1, filled)
