"""Rows of blocks by themselves: which are selected, where results are written, and how they are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile.capture.part import (
    Additive,
    Buffer,
    ChosenKeys,
    Hoisted,
    Index,
    Input,
    KeyWorth,
    PerSelection,
    Pick,
    Positions,
    RowSource,
    Shared,
    Stream,
    TakenFrom,
)
from mccompile.capture.types import Beside, Port
from mccompile.lowering.types import LoweredRegion
from mccompile.runtime import blocks as module
from mccompile.runtime.blocks import BlockCalls
from mccompile.runtime.nearest import Filling
from mccompile.runtime.operands import Misplaced, one_sample, own_count
from mccompile.runtime.rows import KeyChoices, Rows
from mccompile.runtime.store import Memory

X = torch.arange(8.0).view(2, 4, 1)


@pytest.fixture(autouse=True)
def untouched() -> None:
    """What one test has written into the values is not seen by the next one."""
    X.copy_(torch.arange(8.0).view(2, 4, 1))


def port(name: str, axis: int | None = 1, rows: str = "video", beside: Beside | None = None) -> Port:
    return Port(name, axis, rows, frozenset(), None, beside)


def rows(*index: int, sample: int | None = None, whole: bool = False, **more: Any) -> Rows:
    at = torch.tensor(index)
    values: dict[str, Any] = {
        "sample": sample, "batch": 2, "whole": whole, "index": at, "made": {}, "values": {}, "sources": {},
        "vectors": {"video": at}, "picks": {},
    }  # fmt: skip
    return Rows(**{**values, **more})


def calls(*ports: Port, **more: Any) -> Any:
    """Blocks of which only these parts are there."""
    made = object.__new__(BlockCalls)
    cache = SimpleNamespace(residual="model", dtype="model", device="model")
    known = {p.name: p for p in ports or (port("x"), port("vec", None))}
    vars(made).update({"_ports": known, "staging": None, "cache": cache, "_batched": set(), "_counts": {}, **more})
    return made


def test_selected_rows_are_written_back_in_place() -> None:
    made, into = calls(), torch.zeros(2, 4, 1)
    made.put("x", into, X[:, :2] + 1, rows(1, 3))
    assert into[..., 0].tolist() == [[0, 1, 0, 2], [0, 5, 0, 6]]
    made.put("x", into, X[:1, :2] + 10, rows(0, 2, sample=1))
    assert into[..., 0].tolist() == [[0, 1, 0, 2], [10, 5, 11, 6]]
    made.put("x", into, X, rows(0, 1, 2, 3, whole=True))
    assert torch.equal(into, X)
    other = torch.zeros(2, 1)
    made.put("vec", other, torch.ones(1, 1), rows(1, sample=0))
    assert other.tolist() == [[1.0], [0.0]]


def test_all_rows_are_all_of_a_stream_that_has_no_others() -> None:
    made = calls()
    assert made._all("x", X, rows(0, 1, 2, 3, whole=True)) is True
    assert made._all("x", X, rows(0, 1, 2, 3)) is False
    assert made._all("x", torch.zeros(2, 5, 1), rows(0, 1, 2, 3, whole=True)) is False
    assert made._all("vec", torch.zeros(2, 1), rows(1)) is True
    assert made.replaces("x", X, rows(0, 1, 2, 3, whole=True)) is True
    assert made.replaces("x", X, rows(0, 1, 2, 3, whole=True, sample=1)) is False
    assert made.replaces("x", X, rows(1)) is False
    assert (made.token_axis("x"), made.token_axis("vec")) == (1, None)


def test_kept_rows_move_from_one_place_to_another() -> None:
    made, target = calls(), torch.full((2, 4, 1), -1.0)
    made.move_rows("x", X, target, rows(1, 3, sample=1))
    assert target[..., 0].tolist() == [[-1] * 4, [-1, 5, -1, 7]]
    made.move_rows("x", X, target, rows(0))
    assert target[..., 0].tolist() == [[0, -1, -1, -1], [4, 5, -1, 7]]
    made.move_rows("x", X, target, rows(0, 1, 2, 3, whole=True))
    assert torch.equal(target, X)
    other = torch.zeros(2, 1)
    made.move_rows("vec", torch.ones(2, 1), other, rows(1))
    assert other.tolist() == [[1.0], [1.0]]
    settled = list[bool]()
    made.staging = SimpleNamespace(settle=lambda: settled.append(True))
    made.move_rows("x", X, target, rows(0))
    assert settled == [True]  # the host may read what is kept only when it is there


def test_results_are_kept_in_the_form_that_the_policy_says() -> None:
    made, into = calls(), torch.zeros(2, 4, 1)
    made.keep_rows("x", into, X[:, :1] + 1, rows(2))
    assert into[..., 0].tolist() == [[0, 0, 1, 0], [0, 0, 5, 0]]
    made.cache.residual = "float16"
    nothing = made.keep_nothing(X)
    assert (nothing.shape, nothing.dtype, bool(nothing.any())) == (X.shape, torch.float16, False)
    assert made.keep_nothing(X.to("meta")).device.type == "meta"
    back = made.kept_values(nothing + 1.5, X)
    assert (back.dtype, back[0, 0, 0].item()) == (torch.float32, 1.5)
    region = LoweredRegion(0, 0, "residual", (("x", "y"), ("", "z")))
    found = made.kept_of(region, 3, {"x": X}, {"y": X * 3, "z": X + 1})
    assert {key: value.dtype for key, value in found.items()} == {(3, "y"): torch.float16, (3, "z"): torch.float16}
    assert torch.equal(found[3, "y"].float(), 2 * X)
    assert torch.equal(found[3, "z"].float(), X + 1)
    output = made.kept_of(LoweredRegion(0, 0, "output", (("x", "y"),)), 0, {"x": X}, {"y": X * 3})
    assert torch.equal(output[0, "y"].float(), 3 * X)


def test_what_is_kept_on_the_host_goes_by_the_staging() -> None:
    home, bring = (lambda t: ("home", t)), (lambda t: t + 1)
    asked = list[object]()
    staging = SimpleNamespace(home=home, bring=bring, settle=lambda: None, put=lambda *given: asked.append(given))
    made = calls(staging=staging)
    assert made.keep_nothing(X)[0] == "home"
    assert made.keep_nothing(X.to("meta"))[1].device.type == "cpu"
    assert torch.equal(made.kept_values(X, X), X + 1)
    assert made.kept_of(LoweredRegion(0, 0, "output", (("x", "y"),)), 0, {}, {"y": X})[0, "y"][0] == "home"
    made.keep_rows("x", X, X[:, :2], rows(1, 2))
    made.keep_rows("x", X, X, rows(0, 1, 2, 3, whole=True))
    (local, axis, index, value), (_, _, everything, _) = asked  # type: ignore[misc]
    assert (local is X, axis, index.tolist(), value.shape) == (True, 1, [1, 2], (2, 2, 1))
    assert everything is None


def test_a_stream_of_which_nothing_is_there_has_the_rows_of_one_that_is_alike() -> None:
    made = calls(port("x"), port("text", 1, "text"), port("new"), port("wide", 2, "video"), port("vec", None, ""))
    env = {"text": torch.zeros(2, 9, 1), "x": X, "vec": torch.zeros(2, 3), "elsewhere": X}
    fresh = torch.ones(2, 2, 5)
    assert made.nothing("new", fresh, rows(0, 1), env).shape == (2, 4, 5)
    assert made.nothing("new", fresh[:1], rows(0, 1, sample=1), env).shape == (2, 4, 5)
    assert made.nothing("text", fresh, rows(0, 1), env).shape == (2, 9, 5)
    alone = made.nothing("vec", torch.ones(1, 3), rows(0, 1, sample=0), env)
    assert (alone.shape, bool(alone.any())) == ((2, 3), False)
    assert made.nothing("vec", torch.ones(5, 3), rows(0, 1), env).shape == (5, 3)


def test_results_that_tokens_take_are_given_along_the_tokens() -> None:
    filling = Filling(torch.tensor([0, 1]), torch.tensor([[0, 0]]))
    into = torch.zeros(2, 4, 1)
    calls().give("x", into, torch.full((1, 1, 1), 7.0), rows(0, sample=1, filling=filling), add=False)
    assert into[..., 0].tolist() == [[0] * 4, [7, 7, 0, 0]]


def region(first: int = 0, last: int = 0) -> LoweredRegion:
    return LoweredRegion(first, last, "residual", (("x", "y"),))


def test_the_rows_that_enter_a_region_are_those_of_streams_that_it_does_not_make() -> None:
    blocks = (
        SimpleNamespace(streams_in=("x", "vec"), streams_out=("y",)),
        SimpleNamespace(streams_in=("y", "x", "w"), streams_out=("z",)),
    )
    made = calls(_captured=SimpleNamespace(blocks=blocks))
    env = {"x": X, "vec": torch.arange(2.0).view(2, 1)}
    found = made.enter(region(0, 0), env, rows(1, 3, sample=1))
    assert list(found) == ["x", "vec"]
    made._ports["w"] = port("w")
    assert list(made.enter(region(0, 1), {**env, "w": X}, rows(1))) == ["x", "vec", "w"]
    assert found["x"][..., 0].tolist() == [[5.0, 7.0]]
    assert found["vec"].tolist() == [[1.0]]
    whole = made.enter(region(0, 0), env, rows(0, 1, 2, 3, whole=True))
    assert whole["x"] is X
    shuffled = made.enter(region(0, 0), env, rows(0, 1, 2, 3))["x"]
    assert torch.equal(shuffled, X)


class Part:
    """A part that gives what `resolve` finds for its operands."""

    def __init__(self, *takes: Any) -> None:
        self.takes = takes

    def __call__(self, resolve: Any) -> tuple[Any, ...]:
        return tuple(resolve(operand) for operand in self.takes)


def test_all_rows_of_blocks_run_on_streams_shared_values_and_masks() -> None:
    blocks = (SimpleNamespace(streams_out=("y", "m")), SimpleNamespace(streams_out=("z",)))
    masks = SimpleNamespace(dtype=None, of=lambda name, value, dtype: (name, value, dtype))
    dtypes = SimpleNamespace(of=lambda i, part, env, shared: {"mask": f"of {i}"})
    parts = {0: Part(Stream("x"), Additive("mask")), 1: Part(Shared("text"))}
    made = calls(_captured=SimpleNamespace(blocks=blocks), _plain=parts, _masks=masks, _dtypes=dtypes)
    env: dict[str, Any] = {"x": X}
    found = made.run_plain(region(0, 1), env, {"mask": 1, "text": 2})
    assert found == {"x": X, "y": X, "m": ("mask", 1, "of 0"), "z": 2}
    assert env == {"x": X}
    masks.dtype = torch.float16
    assert made.run_plain(region(0, 0), env, {"mask": 1})["m"] == ("mask", 1, torch.float16)
    assert made.mask_dtypes(0, env, {}) == {}
    made._plain = {0: Part(Index())}
    with pytest.raises(Misplaced, match="a plain part takes"):
        made.run_plain(region(0, 0), env, {})


WORTH = torch.tensor([1.0])
CHOICE = KeyChoices(WORTH, 4, True)


def test_selected_rows_run_on_what_their_operands_name() -> None:
    fill = Filling(torch.tensor([9]), torch.tensor([[8]]))
    chosen = rows(
        1, values={"v": 1}, sources={"s": 2}, picks={"p": 3}, vectors={"video": 4}, made={"m": 5}, filling=fill,
        choice=CHOICE,
    )  # fmt: skip
    selection = PerSelection("m", lambda positions, seen: torch.zeros(0))
    operands = (
        Stream("x"), Shared("v"), RowSource("s"), Pick("p"), Positions("video"), KeyWorth(), selection, TakenFrom(),
        Buffer("k"), Hoisted(0, True), ChosenKeys("k"),
    )  # fmt: skip
    picks, kept = SimpleNamespace(operands=lambda i: (ChosenKeys("k"),)), list[Any]()
    picks.keep = lambda *given: kept.append(given)
    streams = tuple(f"out{i}" for i in range(9))
    made = calls(
        _captured=SimpleNamespace(blocks=(SimpleNamespace(kind=0, streams_out=streams),)), _picks=picks,
        _keeps=((Buffer("k"), Hoisted(0, True)),), _partial={0: Part(*operands)},
    )  # fmt: skip
    made._kept = lambda i, *more: ("keys", "text", "picked")
    found = made.run_rows(region(), {"x": X}, chosen, {}, {}, Memory())
    assert [found[name] for name in streams] == [X, 1, 2, 3, 4, WORTH, 5, fill.taken, "keys"]
    assert kept == [(("picked",), ("text", "picked"), chosen, None)]
    sent = list[Any]()
    made.staging = SimpleNamespace(through=lambda homes: [("here", "here too", "picked here")])
    made._put_back = lambda *given: sent.append(given)
    assert made.run_rows(region(), {"x": X}, chosen, {}, {}, Memory())["out8"] == "here"
    assert sent == [(0, ("keys", "text", "picked"), ("here", "here too", "picked here"), chosen)]
    made.staging, made._partial = None, {0: Part(Input("x"))}
    with pytest.raises(Misplaced, match="a rows part takes"):
        made.run_rows(region(), {"x": X}, chosen, {}, {}, Memory())


def test_what_is_gathered_for_a_selection() -> None:
    at = torch.tensor([1, 2])
    made = calls(_gather_part=SimpleNamespace(takes=(Index(), RowSource("s"))), _gather=lambda *given: given)
    assert made._gathered(at, {"s": 5}) == (at, 5)
    made._gather_part.takes = (Stream("x"),)
    with pytest.raises(Misplaced, match="a gather part takes"):
        made._gathered(at, {})


def selecting(*, seen: int = 4, fills: bool = False) -> Any:
    """Blocks that gather the rows of one shared value, a vector and picks."""
    gives = (Shared("rope"), Positions("3+video"), Pick("source"))
    per = (
        PerSelection("n", lambda positions, seen: torch.tensor([len(positions), len(seen)])),
        PerSelection("d", lambda positions, seen: torch.tensor(positions), on_device=True),
    )
    gather = SimpleNamespace(gives=gives, takes=(Index(), RowSource("source")))
    return calls(
        _gather_part=gather, _gather=lambda index, source: (source[:, index], index + 3, index * 2),
        _picked=("source",), _per_selection=per, _fills=fills, _batched={"rope", "source"},
    )  # fmt: skip


def test_a_selection_has_its_rows_of_shared_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "to_device", lambda value, device: value + 100)
    made, source, seen = selecting(), X + 100, np.arange(4)
    shared = {"source": source, "steps": 3}
    found = made.select(np.array([1, 3]), None, seen, {"x": X}, shared)
    assert (found.sample, found.batch, found.whole, found.index.tolist()) == (None, 2, False, [1, 3])
    assert found.values["rope"][..., 0].tolist() == [[101, 103], [105, 107]]
    assert (found.values["steps"], found.values["source"] is source) == (3, True)
    assert found.sources == {"source": source}
    assert {name: v.tolist() for name, v in found.vectors.items()} == {"video": [1, 3], "3+video": [4, 6]}
    assert found.picks["source"].tolist() == [2, 6]
    assert {name: v.tolist() for name, v in found.made.items()} == {"n": [2, 4], "d": [101, 103]}
    assert (found.filling, found.choice) == (None, None)
    own = made.select(np.array([1, 3]), 1, seen, {"x": X}, shared)
    assert own.values["rope"][..., 0].tolist() == [[105, 107]]
    assert own.sources["source"].shape == (1, 4, 1)
    assert own.sample == 1
    everything = made.select(np.arange(4), None, seen, {"x": X}, shared)
    assert everything.whole is True
    assert made.select(np.arange(4), 0, seen, {"x": X}, shared).whole is False
    lone = made.select(np.array([2]), None, seen, {"x": X}, shared)
    assert lone.index.tolist() == [2, 2]
    made._gather_part.gives = (Index(), *made._gather_part.gives[1:])
    with pytest.raises(Misplaced, match="a gather part takes"):
        made.select(np.array([1, 3]), None, seen, {"x": X}, shared)


def test_a_selection_of_tokens_that_others_take_from() -> None:
    made, shared, seen = selecting(fills=True), {"source": X}, np.arange(4)
    own = made.select(np.array([1, 3]), None, seen, {"x": X}, shared).filling
    assert own.taken.shape == (2, 2)
    assert made.select(np.array([1, 3]), 1, seen, {"x": X}, shared).filling.taken.shape == (1, 2)
    asked = list[Any]()

    def fill(positions: np.ndarray, index: torch.Tensor, sample: int | None) -> Any:
        asked.append((positions.tolist(), index.tolist(), sample))
        return "filling"

    assert made.select(np.array([1, 3]), 1, seen, {"x": X}, shared, fill).filling == "filling"
    assert asked == [([1, 3], [1, 3], 1)]


def test_values_of_one_sample() -> None:
    made = calls(_batched={"a"}, _counts={"n": None, "m": 3})
    values = {"a": X, "b": X, "n": 6, "m": 6}
    found = made._of_sample(values, 1, 2)
    assert (found["a"].tolist(), found["b"] is X, found["n"], found["m"]) == (X[1:].tolist(), True, 3, 3)
    assert one_sample(X, None, 2) is X
    assert one_sample(X, 1, 3) is X
    assert one_sample(5, 1, 2) == 5
    scalar = torch.tensor(1.0)
    assert one_sample(scalar, 1, 2) is scalar
    assert (own_count(6, None, 2), own_count(6, 5, 2)) == (3, 5)
