"""What a runner, a compiled model and a predictor are when they are made, and how a call of a runner begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mccompile import ir
from mccompile.language.load import load_policy
from mccompile.lowering.host import Flag
from mccompile.lowering.slots import Count
from mccompile.lowering.types import LoweredRegion
from mccompile.policy.bind import bind
from mccompile.policy.phases import Grid
from mccompile.runtime import budget, execute
from mccompile.runtime import compiled as compiling
from mccompile.runtime import runner as running
from mccompile.runtime.budget import Predictor
from mccompile.runtime.clock import ChunkTime, Moment, Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.decision import Decide
from mccompile.runtime.finite import OnItsWay
from mccompile.runtime.runner import Runner
from mccompile.runtime.store import Deciding, Memory, States

GRID = Grid(3, (900.0, 600.0, 300.0), (0.9, 0.6, 0.3))


def lowered(policy: str = "teacache", **more: Any) -> Any:
    values = {"policy": load_policy(policy), "together": None, "captured": SimpleNamespace(module=nn.Module())}
    return SimpleNamespace(**{**values, **more})


def test_a_runner_begins_without_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "Engine", lambda lowered, backend: ("engine", lowered, backend))
    monkeypatch.setattr(running, "Budget", lambda lowered, bound: ("budget", lowered, bound))
    monkeypatch.setattr(running, "Pairing", lambda runner, leader: ("pairing", runner, leader))
    of, other = lowered(), bind(load_policy("compute"), {})
    made = Runner(of, other, "backend")  # type: ignore[arg-type]
    assert (made.bound.ir is of.policy, set(made.bounds), made.backend, made.fold) == (True, {""}, "backend", True)
    assert made.bounds[""].ir.name == "teacache"
    assert (made.engine, made.pairing, made.budget) == (("engine", of, "backend"), None, None)
    assert (made.goes_on, made.latest, made.first_step, made.last_step, made.not_finite()) == (False, None, 0, 0, 0)
    assert (made.notes, made.decided, made.requests, made.events) == ((), [], {}, [])
    assert (made.expert, made.watch, made.foresees, made.masks) == ("", None, None, None)
    assert (set(made._told), set(made._wants)) == ({""}, {""})
    both = Runner(lowered(together="cond"), other, "backend", fold=False)  # type: ignore[arg-type]
    assert (both.pairing, both.fold) == (("pairing", both, "cond"), False)
    policy = load_policy("teacache")
    bounded = lowered()
    bounded.policy = SimpleNamespace(
        **{f: getattr(policy, f) for f in policy.__dataclass_fields__} | {"cache": SimpleNamespace(budget=10)}
    )
    monkeypatch.setattr(running, "bounds_of", lambda bound: {})
    monkeypatch.setattr(running, "policies", lambda policy: {})
    own = Runner(bounded, other, "backend")  # type: ignore[arg-type]
    assert own.budget == ("budget", bounded, own.bound)


def beginning(monkeypatch: pytest.MonkeyPatch, odd: bool = False, whole: Any = None) -> tuple[list[Any], Any]:
    """What is done when a call begins, in order."""
    done, moment = list[Any](), Moment("run", 0, "cond", GRID, (ChunkTime(0, "active", 0),), 1)
    made: Any = object.__new__(Runner)
    courses = {"a": SimpleNamespace(history="history")}
    store, renewed = SimpleNamespace(courses=courses), SimpleNamespace(courses=courses)
    request = SimpleNamespace(branches={"cond": store})
    engine = SimpleNamespace(
        blocks=SimpleNamespace(settle=lambda: done.append("settle")),
        values=SimpleNamespace(get=lambda inputs: "shared"), entry=lambda shared: "entry",
        video=lambda entry: "video", prompt=("p",), whole=whole,
    )  # fmt: skip
    policy = SimpleNamespace(branches=SimpleNamespace(share_decision=None))
    vars(made).update(
        engine=engine, lowered=SimpleNamespace(captured="captured", policy=policy), fold=True, _bounds_in={},
        bound=SimpleNamespace(ir="ir"), bounds_in=lambda branch: {"a": "bound"}, requests={"run": request},
        _store=lambda moment, layout, inputs: (store, {"a": "plan"}),
        _request=lambda moment: (done.append("request"), request)[1],
        _resolved=lambda moment, of, plans, layout: (done.append("resolved"), {"a": (len(done),)})[1],
    )  # fmt: skip
    monkeypatch.setattr(running, "layout_of", lambda lowered, moment, inputs, stream: (stream, inputs))
    monkeypatch.setattr(running, "made_of", lambda captured, prompt, layout, inputs: (captured, prompt))
    monkeypatch.setattr(running, "renew", lambda of, made, moment, bounds: (done.append(("renew", made)), renewed)[1])
    monkeypatch.setattr(running, "window_of", lambda moment, layout, inputs: "window")
    monkeypatch.setattr(running, "move_window", lambda of, now, *_: done.append(("move", of is renewed, now)))
    monkeypatch.setattr(running, "forget_odd", lambda of, actions: (done.append(list(actions)), odd)[1])
    monkeypatch.setattr(running, "view_in", lambda policy, group, branch: SimpleNamespace(name=f"{group} of {branch}"))
    monkeypatch.setattr(running, "served", lambda *given: ("served", *given[1:]))
    monkeypatch.setattr(running, "own_branches", lambda policy: ("cond",))
    steps = made.begin("inputs", moment)
    assert request.branches["cond"] is renewed
    (step,) = steps.values()
    assert (step.store is renewed, step.plan, step.bound, step.view) == (True, "plan", "bound", "a of cond")
    assert (step.inputs, step.shared, step.entry, step.group, step.leader) == ("inputs", "shared", "entry", "a", None)
    assert step.layout == ("video", "inputs")
    return done, step.actions


def test_a_call_begins_with_a_store_that_is_laid_out_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done, actions = beginning(monkeypatch)
    assert [one for one in done if one != "request"] == [
        "settle", ("renew", ("captured", ("p",))), ("move", True, "window"), "resolved", [actions]
    ]
    assert done[1] == "request"
    first = actions
    done, actions = beginning(monkeypatch, odd=True)  # what is no number is forgotten, and the call resolved anew
    assert done.count("resolved") == 2
    assert actions != first
    _, actions = beginning(monkeypatch, whole=SimpleNamespace(keep="output", group="a"))
    assert actions == first
    _, actions = beginning(monkeypatch, whole=SimpleNamespace(keep="gap", group="a"))
    assert (actions[0], actions[1], actions[4], actions[5]) == ("served", "a", first, True)


def test_a_compiled_model_is_made_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(nn.Module):
        """It gives a tuple unless it is told otherwise."""

        def __init__(self) -> None:
            super().__init__()
            self.config, self.setting = {"a": 1}, 1

        def forward(self, x: object, return_dict: bool = False) -> object:
            return x

    for name in ("Runner", "IdleArguments", "NewSizes", "OneByOne", "ModelState"):
        monkeypatch.setattr(compiling, name, lambda *given, _name=name: SimpleNamespace(name=_name, given=given))
    scales = SimpleNamespace(layers="layers")
    monkeypatch.setattr(compiling, "AdapterScales", lambda *given: scales)
    monkeypatch.setattr(compiling, "measures", lambda cache, accelerator: (("first", accelerator), "second"))
    model, of = Model().train(), lowered()
    made: Any = CompiledModel(model, of, "bound", "backend")  # type: ignore[arg-type]
    captured = of.captured
    assert made.runner.given == (of, "bound", "backend", True)
    assert made._idle.given == made._sizes.given == (model, captured)
    assert made._one_by_one.given == (captured,)
    assert made._state.given == (model, captured.module, "layers")
    assert (made.keeping.cache, made.keeping.predicted) == (("first", False), None)
    assert (made._return_dict, made._config, made._factor) == (False, {"a": 1}, 1.0)
    assert (made._branch, made._place) == ("cond", None)
    assert (made._checked, made._undo, made.experts, made.clock, made.journal) == ((None, -1), [], (made,), None, None)
    assert (model.training, made._given is model, made.slot) == (False, True, None)
    assert made._modules is model._modules
    made.setting = 2
    assert model.setting == 2
    plain: Any = CompiledModel(nn.Identity(), of, "bound", "backend", fold=False)  # type: ignore[arg-type]
    assert plain._return_dict is compiling._ABSENT
    assert plain.runner.given[3] is False


@pytest.mark.parametrize(("dtypes", "itemsize"), [
    ((torch.float32, torch.float16, torch.int8), 2), ((torch.int8,), 4), ((torch.float64,), 8),
])  # fmt: skip
def test_what_is_kept_is_counted_in_the_models_dtype(
    dtypes: tuple[torch.dtype, ...], itemsize: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "Engine", lambda of, backend: SimpleNamespace(blocks=SimpleNamespace(staging="some")))
    of = lowered()
    for number, dtype in enumerate(dtypes):
        of.captured.module.register_buffer(f"w{number}", torch.zeros(1, dtype=dtype))
    made: Any = Predictor(of, bind(load_policy("compute"), {}))
    assert (made._itemsize, made.accelerator, made._engine.blocks.staging) == (itemsize, False, None)
    assert (made.cache is of.policy.cache, made._bound.ir is of.policy) == (True, True)
    of.captured.module.to("meta")
    assert Predictor(of, bind(load_policy("compute"), {})).accelerator is (dtypes != (torch.int8,))


def test_the_rows_of_a_clock_that_the_user_sets() -> None:
    clock = Timeline("run", GRID, steps_in_order(GRID, 2))
    assert clock.moment("cond", {}) == Moment("run", 0, "cond", GRID, clock.rows[0], 2, clock.rows[1])
    clock.row = 1
    assert clock.moment("cond", {}).following == clock.rows[2]
    clock.row = 2
    assert clock.moment("uncond", {}) == Moment("run", 2, "uncond", GRID, clock.rows[2], 2, None)
    assert clock.rows[2] == (ChunkTime(0, "active", 2), ChunkTime(1, "active", 2))
    assert len(clock.rows) == 3


def test_a_decision_that_came_is_taken_over() -> None:
    spec: Any = SimpleNamespace(
        inputs=(), outputs=(), counts=(), weights=(), host=(Flag("forced"), Flag("active")), measured=(), sources=()
    )
    decide, kept = Decide(spec, None), Count("total")  # type: ignore[arg-type]
    host = np.zeros((2, 2, 2), np.float32)
    host[0, 1, 1] = host[1, 1, 0] = 1.0
    mask, measured, ways = torch.ones(1, 1, 1, 1).bool(), torch.zeros(1, 2, 1), torch.ones(1)
    states = States(tensors={kept: torch.zeros(2, 5, 1)})
    coming = OnItsWay((mask, measured, ways), None)
    found = decide.finish(Deciding(host, 3, {kept: torch.ones(2, 2, 1)}, coming), states)
    assert found.tolist() == mask.tolist()
    assert states.seen == {(0, 4), (1, 3)}
    assert states.tensors[kept][0, :, 0].tolist() == [0, 0, 0, 1, 1]
    assert states.measured is not None
    assert states.ways is not None
    assert (states.measured.shape, states.ways.tolist()) == ((1, 2, 1), [1.0])
    decide.finish(Deciding(host, 0, {}, OnItsWay((mask, measured), None)), states)
    assert states.ways is None
    assert {(0, 1), (1, 0)} <= states.seen


def test_results_before_the_last_one_are_kept_where_a_forecast_reads_them() -> None:
    """Of all rows the tensors change places; of some, their rows move from one to the next."""
    moved, one = list[Any](), ir.Const(1.0)
    blocks: Any = SimpleNamespace(
        keep_nothing=torch.zeros_like, keep_rows=lambda name, into, made, rows: into.copy_(made),
        replaces=lambda name, kept, rows: rows == "all", move_rows=lambda *given: moved.append(given),
    )  # fmt: skip
    two = LoweredRegion(0, 0, "output", (("x", "y"),), forecast=ir.Forecast(((one,), (one, one))))
    store = Memory()
    for value in (1.0, 2.0):
        execute._keep(blocks, two, (0, "y"), {}, torch.full((1, 2), value), "all", store, whole=True)  # type: ignore[arg-type]
    assert (store.kept[0, "y"].tolist(), [t.tolist() for t in store.older[0, "y"]]) == ([[2.0, 2.0]], [[[1.0, 1.0]]])
    execute._keep(blocks, two, (0, "y"), {}, torch.full((1, 2), 3.0), "some", store, whole=False)  # type: ignore[arg-type]
    ((name, newer, older, _),) = moved
    assert (name, newer is store.kept[0, "y"], older is store.older[0, "y"][0]) == ("y", True, True)
    single = LoweredRegion(0, 0, "output", (("x", "y"),))
    execute._keep(blocks, single, (1, "y"), {"y": torch.ones(3)}, torch.ones(3), "some", store, whole=False)  # type: ignore[arg-type]
    assert (store.kept[1, "y"].shape, (1, "y") in store.older) == ((3,), False)
