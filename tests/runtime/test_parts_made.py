"""What the runtime makes of a lowered model when it is compiled: which graphs under which roles, and what it keeps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile.capture.part import (
    Buffer,
    Filled,
    Hoisted,
    Input,
    PerSelection,
    RowSource,
    Shared,
    Stream,
    Weight,
)
from mccompile.capture.types import Along, Port, SampleCount
from mccompile.ir import PolicyIR
from mccompile.language.load import load_policy
from mccompile.runtime import engine as engines
from mccompile.runtime import exercise
from mccompile.runtime import whole as wholes
from mccompile.runtime.blocks import BlockCalls, eager
from mccompile.runtime.engine import Engine
from mccompile.runtime.errors import NoIncrement, OverBudget
from mccompile.runtime.execute import Postlude
from mccompile.runtime.layout import Layout
from mccompile.runtime.whole import whole_model


def part(name: str, *takes: Any, gives: Any = ()) -> Any:
    return SimpleNamespace(module=SimpleNamespace(name=name, forward=f"{name} itself"), takes=takes, gives=gives)


class Backend:
    """It notes which graphs it is given, and as which part of the model."""

    def __init__(self) -> None:
        self.asked = list[tuple[str, str, int]]()

    def __call__(self, module: Any, role: Any) -> Any:
        self.asked.append((module.name, role.part, role.kind))
        return f"{module.name} compiled"


FULL = SimpleNamespace(takes=(Stream("x"), Shared("s"), Weight("w")), gives=(Stream("y"),))


def ports() -> dict[str, Any]:
    """Values that blocks share: by samples, by their number, for each position, and of the shapes alone."""
    def port(name: str, axis: int | None, *depends: str, batch: Any = None) -> Port:
        return Port(name, axis, "video", frozenset(depends), batch)

    shared = (
        port("text", None, "prompt", batch=Along(0)), port("count", None, "prompt", batch=SampleCount(3)),
        port("across", 0, "prompt", batch=Along(1)), port("table", 1),
    )  # fmt: skip
    return {"shared": shared, "sources": (port("source", 1, "prompt"), port("picked", 1)), "streams": (port("x", 1),)}


def lowered(device: str = "cpu", keep: str = "cpu", samples: tuple[str, ...] = (), rows: bool = True) -> Any:
    """Two kinds of blocks, of which only the first takes something of the prompt alone."""
    module = torch.nn.Module()
    module.register_buffer("w0", torch.zeros(1, device=device))
    kinds = (
        SimpleNamespace(full=FULL, buffers=(SimpleNamespace(name="k"),)), SimpleNamespace(full=FULL, buffers=()),
    )  # fmt: skip
    site = {"streams_in": ("x",), "streams_out": ("y",), "shared": ("text",), "weights": ("w0",)}
    blocks = tuple(SimpleNamespace(index=i, kind=i % 2, **site) for i in range(3))
    module.w0_number = 3
    captured = SimpleNamespace(**ports(), kinds=kinds, blocks=blocks, module=module, samples=samples)
    selection = PerSelection("n", lambda positions, seen: torch.zeros(0))
    forms = SimpleNamespace(
        gather=part("gather", RowSource("picked")), once=(part("once", Shared("s"), gives=(Hoisted(0, True),)), None),
        partial=(part("rows0", selection, Filled(), RowSource("source")), part("rows1", selection)),
        allocate=(part("new0"), part("new1")),
    )  # fmt: skip
    cache = SimpleNamespace(device=keep)
    return SimpleNamespace(
        captured=captured, rows=forms if rows else None, plain=(part("plain0"), part("plain1")),
        policy=SimpleNamespace(cache=cache),
    )  # fmt: skip


def test_blocks_by_rows_have_a_graph_for_each_kind_and_form() -> None:
    backend = Backend()
    made: Any = BlockCalls(lowered(), backend, by_rows=True)  # type: ignore[arg-type]
    assert backend.asked == [
        ("gather", "gather", 0), ("rows0", "rows", 0), ("rows1", "rows", 1), ("once", "prompt", 0),
    ]  # fmt: skip
    assert made._gather == "gather compiled"
    assert {i: of._call for i, of in made._partial.items()} == {
        0: "rows0 compiled", 1: "rows1 compiled", 2: "rows0 compiled"
    }
    assert {i: of._call for i, of in made._once.items()} == {0: "once compiled", 2: "once compiled"}
    assert made._allocate[1]._call == "new1 itself"
    assert made._keeps == ((Buffer("k"), Hoisted(0, True)), ())
    assert [operand.name for operand in made._per_selection] == ["n"]
    assert (made._fills, made._picked) == (True, ("source",))
    assert made.sources == ("source", "picked", "text")
    assert made.staging is None


def test_blocks_on_all_rows_have_their_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (True, False):
        backend = Backend()
        made: Any = BlockCalls(lowered(rows=rows), backend, by_rows=not rows)  # type: ignore[arg-type]
        assert backend.asked == [("plain0", "block", 0), ("plain1", "block", 1)]
        assert made._plain[2]._call == "plain0 compiled"


def test_values_of_one_sample_are_taken_of_those_that_have_one_for_each() -> None:
    """Of a model that was captured at one number of samples, all that depend on inputs and not on positions."""
    made: Any = BlockCalls(lowered(samples=("x",)), Backend(), by_rows=False)  # type: ignore[arg-type]
    assert (made._batched, made._counts) == ({"text"}, {"count": 3})
    fixed: Any = BlockCalls(lowered(), Backend(), by_rows=False)  # type: ignore[arg-type]
    assert fixed._batched == {"text", "count", "source"}


@pytest.mark.parametrize(("device", "keep", "staged"), [
    ("meta", "cpu", True), ("cpu", "cpu", False), ("meta", "model", False), ("cpu", "model", False),
])  # fmt: skip
def test_what_is_kept_on_the_host_is_staged_for_another_device(
    device: str, keep: str, staged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mccompile.runtime.blocks.Staging", lambda device: ("staging", device.type))
    model = lowered(device, keep)
    for block in model.captured.blocks:
        block.weights = ("w0_number", "w0")
    model.captured.kinds[0].full = model.captured.kinds[1].full = SimpleNamespace(
        takes=(Stream("x"), Shared("s"), Weight("n"), Weight("w")), gives=(Stream("y"),)
    )
    made = BlockCalls(model, Backend(), by_rows=False)  # type: ignore[arg-type]
    assert made.staging == (("staging", "meta") if staged else None)
    model.captured.blocks = ()
    assert BlockCalls(model, Backend(), by_rows=False).staging is None  # type: ignore[arg-type]


def test_the_eager_backend_runs_graphs_as_they_are() -> None:
    module: Any = SimpleNamespace(forward="itself")
    assert eager(module, None) == "itself"  # type: ignore[arg-type, comparison-overlap]


def test_the_final_layers_are_a_graph_of_their_own() -> None:
    backend = Backend()
    of: Any = SimpleNamespace(postlude=part("end", Stream("y"), Shared("s"), Input("t")))
    made: Any = Postlude(of, backend)  # type: ignore[arg-type]
    assert (backend.asked, made.shared) == ([("end", "postlude", 0)], ("s",))


@pytest.mark.parametrize("keep", ["residual", "output", "gap"])
def test_the_output_of_the_model_is_kept_where_the_policy_says_so(
    keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = SimpleNamespace(keep=keep, bands="bands")
    monkeypatch.setattr(wholes, "model_region", lambda policy: region)
    monkeypatch.setattr(wholes, "group_of", lambda region: "group")
    of: Any = SimpleNamespace(policy=None, located={"output": "where"})
    made: Any = whole_model(of, "postlude", "blocks")  # type: ignore[arg-type]
    assert (made.keep, made.group, made.where, made.lowered is of, made.postlude, made.blocks, made.bands) == (
        keep, "group", "where", True, "postlude", "blocks", "bands"
    )  # fmt: skip
    monkeypatch.setattr(wholes, "model_region", lambda policy: None)
    assert whole_model(of, "postlude", "blocks") is None  # type: ignore[arg-type]


def engine(
    monkeypatch: pytest.MonkeyPatch, policy: str, *, prefixes: Any = (), masked: bool = False, **more: Any
) -> Any:
    """An engine whose parts are noted by name, and not made."""
    for name in ("Postlude", "BlockCalls", "Prefixes", "SharedValues", "Observe", "Decide"):
        monkeypatch.setattr(engines, name, lambda *given, _name=name, **named: SimpleNamespace(
            name=_name, given=given, named=named, shared=(), sources=()
        ))  # fmt: skip
    monkeypatch.setattr(engines, "ByPieces", Backend)
    monkeypatch.setattr(engines, "whole_model", lambda *given: ("whole", *given[1:]))
    monkeypatch.setattr(engines, "masked_by_input", lambda captured: masked)
    monkeypatch.setattr(engines, "prompt_inputs", lambda captured: ("prompt",))
    monkeypatch.setattr(engines, "bound_at", lambda *given: given)
    monkeypatch.setattr(engines, "NoForecast", lambda *given: KeyError(*given))
    rows = more.pop("rows", SimpleNamespace(prefixes=prefixes))
    one = SimpleNamespace(module=part("one").module)
    captured = SimpleNamespace(
        **ports(), blocks=("first", "second"), kinds=(), entry=("x",), gathered=(), grid=None
    )
    captured.blocks = tuple(SimpleNamespace(name=n, shared=()) for n in captured.blocks)
    of = SimpleNamespace(
        policy=load_policy(policy), rows=rows, captured=captured, regions=(), located={}, observe=None, modulated=None,
        decides={"a": one, "b": one, "c": None},
    )  # fmt: skip
    backend = Backend()
    vars(of).update(more)
    return Engine(of, backend), backend, of  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "prefixes", "masked", "rows", "uses"),
    [
        ("motioncache", (), False, True, True), ("teacache", (), False, True, False),
        ("teacache", ("mask",), False, True, True), ("teacache", (), True, True, True),
        ("compute", ("mask",), False, True, False), ("motioncache", (), False, False, False),
    ],
)  # fmt: skip
def test_calls_run_on_rows_where_chunks_or_tokens_live_their_own_lives(
    policy: str, prefixes: Any, masked: bool, rows: bool, uses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = SimpleNamespace(prefixes=prefixes) if rows else None
    made, _, _ = engine(monkeypatch, policy, masked=masked, rows=forms)
    assert made.uses_rows is uses
    assert made.vanilla is (policy == "compute")
    assert made.blocks.given[2] is uses
    assert made.values.named == {"as_made": policy == "compute"}
    assert made.prompt == (() if masked else ("prompt",))


def test_an_engine_makes_its_parts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, backend, of = engine(monkeypatch, "motioncache")
    assert made.decides["a"] is made.decides["b"]
    assert (made.decides["a"].name, made.decides["c"], made.observe) == ("Decide", None, None)
    assert backend.asked == [("one", "decide", 0)]
    assert (made.postlude.given, made.prefixes.given) == ((of, backend), (of,))
    assert made.whole == ("whole", made.postlude, made.blocks)
    assert (made.values.given[0], set(made.values.given[1]), made.values.given[2]) == (of.captured, {"x"}, backend)
    late, first = SimpleNamespace(module=part("late").module), part("start")
    made, backend, of = engine(monkeypatch, "motioncache", observe=late, modulated=first)
    assert backend.asked == [("one", "decide", 0), ("late", "observe", 0), ("start", "modulated", 0)]
    assert made.observe.given == (late, "late compiled")
    assert made._modulated == (first, "start compiled", of.captured, of.captured.blocks[0])


def test_an_engine_refuses_forecasts_of_rows_beside_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = list[bool]()
    monkeypatch.setattr(Engine, "_check_forecasts", lambda self: looked.append(self.uses_rows))
    engine(monkeypatch, "motioncache")
    assert looked == [True]


def touched(monkeypatch: pytest.MonkeyPatch, rows: bool = True, chunks: Any = ()) -> tuple[list[Any], Any]:
    """What `exercise` asks of an engine for one call."""
    done = list[Any]()
    layout = Layout(2, 3, 1, 4)
    monkeypatch.setattr(exercise, "layout_of", lambda lowered, moment, inputs, stream: layout)
    monkeypatch.setattr(exercise, "first_moment", lambda engine, inputs, env: exercise.moment_of(1))
    monkeypatch.setattr(exercise, "parameters", lambda names, bound, device: names)
    monkeypatch.setattr(exercise, "worth_of", lambda reach: f"worth of {reach}")

    def selected(blocks: Any, mask: np.ndarray, seen: Any, env: Any, shared: Any, fill: Any, worth: Any) -> Any:
        done.append(("selected", mask.sum(1).tolist(), seen, worth))
        return "rows"

    def merge(blocks: Any, region: Any, number: int, env: Any, shared: Any, chosen: Any, memory: Any) -> Any:
        done.append(("merge", region, number, chosen))
        return {**env, "runs": env.get("runs", 0) + 1}

    monkeypatch.setattr(exercise, "selected", selected)
    monkeypatch.setattr(exercise, "merge", merge)

    def decide(host: np.ndarray, params: Any, sources: Any, states: Any, layout: Any, moment: Any) -> None:
        done.append(("decide", host.shape, bool(host.any()), params, sources, len(moment.chunks)))

    def observe(want: np.ndarray, params: Any, output: Any, states: Any, layout: Any, moment: Any) -> None:
        done.append(("observe", want.shape, bool(want.all()), params, output))

    def plain(region: Any, env: Any, shared: Any) -> Any:
        done.append(("plain", region))
        return {**env, "runs": env.get("runs", 0) + 1}

    made: Any = SimpleNamespace(
        values=SimpleNamespace(get=lambda inputs: "shared"), entry=lambda shared: {"x": 1}, uses_rows=rows,
        video=lambda env: torch.empty(1), lowered=SimpleNamespace(regions=("a", "b")),
        prefixes=SimpleNamespace(seen=lambda inputs, layout, reach: f"seen within {reach}"),
        blocks=SimpleNamespace(run_plain=plain),
        decides={"": SimpleNamespace(spec=SimpleNamespace(host=(1, 2), params=("p",)), run=decide), "none": None},
        observe=SimpleNamespace(spec=SimpleNamespace(params=("q",)), run=observe),
        sources=lambda spec, inputs, shared, env: dict(env), cached_output=lambda env, inputs: dict(env),
        postlude=SimpleNamespace(run=lambda env, shared, inputs: done.append(("end", dict(env), shared, inputs))),
    )  # fmt: skip
    exercise.exercise(made, SimpleNamespace(reach="near"), [{"x": 1}], chunks)  # type: ignore[arg-type]
    return done, made


def test_every_graph_is_touched_at_two_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    done, made = touched(monkeypatch)
    few, all_ = (("selected", [n, n], "seen within near", "worth of near") for n in (5, 12))
    merges = [("merge", "a", 0, "rows"), ("merge", "b", 1, "rows")]
    after = {"x": 1, "runs": 2}
    assert done == [
        few, merges[0], few, merges[1], all_, merges[0], all_, merges[1],
        ("decide", (2, 2, 3), False, ("p",), after, 1), ("observe", (2, 3), True, ("q",), after),
        ("end", after, "shared", {"x": 1}),
    ]  # fmt: skip
    made.observe = None
    exercise.exercise(made, SimpleNamespace(reach=None), [{"x": 1}], (4,))  # type: ignore[arg-type]
    assert [one[-1] for one in done if one[0] == "decide"] == [1, 4]
    assert len([one for one in done if one[0] == "observe"]) == 1


def test_without_rows_all_of_them_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done, _ = touched(monkeypatch, rows=False)
    assert [one for one in done if one[0] in ("plain", "merge", "selected")] == [("plain", "a"), ("plain", "b")]


def test_errors_point_at_the_words_of_the_policy() -> None:
    policy: PolicyIR = load_policy("motioncache_magi1")
    (kept,) = (region for region in policy.regions if region.keep == "increment")
    assert NoIncrement(policy, "Model", "why").diagnostics[0].span == kept.at
    assert NoIncrement(load_policy("teacache"), "Model", "why").diagnostics[0].span is None
    cache = SimpleNamespace(budget=1000, at=kept.at)
    one, two = (str(OverBudget("p", cache, 2000, branches)) for branches in (1, 2))  # type: ignore[arg-type]
    assert "at this size the guidance branch keeps 2,000" in one
    assert "at this size the 2 guidance branches keep 2,000" in two
