"""A rehearsed call by itself: which regions are run on which rows, how often, and what else is kept of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.lowering.types import LoweredRegion
from mccompile.policy.bind import Reach, bind
from mccompile.policy.phases import Grid
from mccompile.runtime import rehearse as module
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.layout import Layout
from mccompile.runtime.prefixes import chunks_alike
from mccompile.runtime.rehearse import rehearse

TEXT = """policy p {
  phase all { a: reuse chunk while step < 9  b: reuse chunk while step < 9 }
  layers a = blocks[0] { keep residual }  layers b = blocks[1] { keep residual }
}"""
X = torch.ones(1, 12, 2)
LAYOUT = Layout(2, 3, 1, 4)


def region(keep: Any = "residual", **more: Any) -> LoweredRegion:
    return LoweredRegion(0, 0, keep, (("x", "y"),), **more)


class Engine:
    """It notes what is run, in which order, and on which rows."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *regions: LoweredRegion, rows: bool = True, **more: Any
    ) -> None:
        self.done, self.uses_rows, self.vanilla = list[Any](), rows, more.pop("vanilla", False)
        self.observe, self.whole = more.pop("observe", None), more.pop("whole", None)
        self.decides = {"a": None, "b": None} | more.pop("decides", {})
        policy, captured = SimpleNamespace(regions=more.pop("kept", ())), SimpleNamespace(grid=more.pop("grid", None))
        self.lowered = SimpleNamespace(regions=regions, policy=policy, captured=captured)
        self.values = SimpleNamespace(get=lambda given: {"given": given})
        self.blocks = SimpleNamespace(run_plain=self.run_plain)
        for name in ("selected", "merge", "keep_whole"):
            monkeypatch.setattr(module, name, getattr(self, name))
        monkeypatch.setattr(module, "layout_of", lambda lowered, moment, inputs, stream: LAYOUT)
        assert not more

    def entry(self, shared: Any) -> Any:
        assert isinstance(shared["given"]["x"], FakeTensor)
        assert shared["given"]["steps"] == 3
        return {"runs": 0}

    def video(self, env: Any) -> torch.Tensor:
        return torch.empty(1)

    def sources(self, spec: Any, given: Any, shared: Any, env: Any) -> Any:
        return ("sources", spec, dict(env))

    def cached_output(self, env: Any, given: Any) -> Any:
        return ("output", dict(env))

    def run_plain(self, region: Any, env: Any, shared: Any) -> Any:
        return {"runs": env["runs"] + 1}

    def selected(self, blocks: Any, mask: np.ndarray, seen: np.ndarray, env: Any, shared: Any) -> Any:
        self.done.append(("selected", mask.sum(1).tolist(), mask.shape, seen.tolist()))
        assert mask[:, : int(mask[0].sum())].all()
        return "rows"

    def merge(self, blocks: Any, region: Any, number: int, env: Any, shared: Any, rows: Any, memory: Any) -> Any:
        self.done.append(("merge", number, env["runs"]))
        memory.buffers[number] = ()
        return {"runs": env["runs"] + 1}

    def keep_whole(self, blocks: Any, region: Any, number: int, before: Any, env: Any, memory: Any) -> None:
        self.done.append(("keep", number, before["runs"], env["runs"]))


def made(engine: Any, policy: Any = None, chunks: int = 3) -> Any:
    times = tuple(ChunkTime(c, "active", 0) for c in range(chunks))
    bound = bind(load_policy(Source("p.policy", TEXT)), {}) if policy is None else policy
    moment = Moment("r", 0, "cond", Grid(1, (0.0,), (0.0,)), times, 5)
    return rehearse(engine, bound, {"x": X, "steps": 3}, moment)


def test_half_of_the_tokens_run_twice_in_each_region_so_that_streams_are_merged(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(monkeypatch, region(None), region())
    store = made(engine)
    assert set(store.courses) == {"a", "b"}
    assert store.courses["a"].history.computed.shape == (2, 5)
    one = ("selected", [6, 6], (2, 12), [12] * 12)
    assert engine.done == [one, ("merge", 0, 0), ("merge", 0, 0), one, ("merge", 1, 1), ("merge", 1, 1)]
    assert set(store.memory.buffers) == {0, 1}


def test_as_many_results_are_made_as_a_forecast_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ir.Const(1.0)
    deep = ir.Forecast(((one,), (one, one), (one, one, one)))
    passed = ir.Forecast(((one,),), ((one,), (one, one, one, one)))
    for forecast, times in ((None, 1), (deep, 3), (passed, 4)):
        of = region(forecast=forecast)
        engine = Engine(monkeypatch, of)
        made(engine)
        assert [kind for kind, *_ in engine.done].count("merge") == max(2, times)
        plain = Engine(monkeypatch, region(None), of, rows=False)
        made(plain)
        assert plain.done == [("keep", 1, 1, 2)] * times
    for other, vanilla in ((region("increment"), False), (region(None), False), (region(), True)):
        engine = Engine(monkeypatch, other, rows=False, vanilla=vanilla)
        made(engine)
        assert engine.done == []


def test_two_tokens_run_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch, region())
    monkeypatch.setattr(module, "layout_of", lambda *_: Layout(1, 1, 1, 3, behind=2))
    made(engine, chunks=1)
    assert engine.done[0] == ("selected", [2], (1, 3), [5] * 5)


def test_states_are_made_of_the_streams_before_the_first_region_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()

    def states(sources: Any, states: Any, layout: Any, moment: Any, device: torch.device) -> None:
        asked.append((sources, states, layout, device.type))

    decide = SimpleNamespace(spec="spec", states=states)
    engine = Engine(monkeypatch, region(None), region(), region(), decides={"b": decide})
    store = made(engine)
    (one,) = asked
    assert one == (("sources", "spec", {"runs": 1}), store.courses["b"].states, LAYOUT, "cpu")


def test_late_signals_and_outputs_of_the_whole_model_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()
    observe = SimpleNamespace(states=lambda *given: asked.append(given))
    room = torch.zeros(1)
    whole = SimpleNamespace(room=lambda given, layout, moment: room if isinstance(given["x"], FakeTensor) else None)
    store = made(Engine(monkeypatch, region(), observe=observe, whole=whole))
    assert store.memory.outputs is room
    assert [given[:2] for given in asked] == [
        (("output", {"runs": 1}), store.courses[name].states) for name in ("a", "b")
    ]  # fmt: skip
    assert store.memory.increments == {}


@pytest.mark.parametrize(("keep", "grid", "kept"), [
    ("increment", True, True), ("residual", True, False), ("increment", False, False),
])  # fmt: skip
def test_an_increment_has_the_size_of_the_latent(
    keep: str, grid: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = SimpleNamespace(source="x") if grid else None
    engine = Engine(monkeypatch, region(), grid=own, kept=(SimpleNamespace(keep="other"), SimpleNamespace(keep=keep)))
    store = made(engine)
    assert {place: value.shape for place, value in store.memory.increments.items()} == ({0: X.shape} if kept else {})


@pytest.mark.parametrize("keys", [None, "picked"])
def test_tokens_see_chunks_where_keys_are_picked(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reach = Reach(1, 1, 1, (1.0,)) if keys else Reach(1, 0)
    engine = Engine(monkeypatch, region())
    monkeypatch.setattr(module, "bounds_in", lambda bound, branch: {})
    monkeypatch.setattr(module, "views", lambda policy: ())
    made(engine, SimpleNamespace(reach=reach, ir=SimpleNamespace(cache=SimpleNamespace(keys=keys))))
    assert engine.done[0][3] == chunks_alike(12, 3 if keys else 1, reach, 4).tolist()
