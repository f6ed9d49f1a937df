"""How many keys tokens see, by the shapes of a call: proved once for each, and refused where masks tell otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile.lowering.errors import NoWindow
from mccompile.lowering.key_picks import seen_within
from mccompile.policy.bind import Reach
from mccompile.runtime import prefixes as module
from mccompile.runtime.errors import NoChunks, NotAPrefix
from mccompile.runtime.layout import Layout
from mccompile.runtime.prefixes import SHAPES_KEPT, Prefixes, check_chunks, chunks_alike, one_chunk, provable

LAYOUT = Layout(1, 3, 1, 4)
LENGTHS = np.repeat([4, 8, 12], 4)
NEAR = Reach(1, 0)


class Told:
    """Prefix lengths by the name of a mask, in place of those that a mask has; it counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **lengths: Any) -> None:
        self.lengths, self.asked = lengths, list[tuple[object, ...]]()
        monkeypatch.setattr(module, "lengths_of", self)

    def __call__(self, captured: object, names: tuple[str, ...], inputs: Any) -> Any:
        self.asked.append(names)
        return {name: self.lengths[name] for name in names}


def prefixes(*names: str) -> Prefixes:
    rows = SimpleNamespace(prefixes=frozenset(names)) if names else None
    return Prefixes(SimpleNamespace(rows=rows, captured=None))  # type: ignore[arg-type]


def call(size: int = 1) -> dict[str, Any]:
    return {"x": torch.zeros(size, 3), "steps": 2}


def test_without_masks_all_tokens_see_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    assert prefixes().lengths(call(), LAYOUT).tolist() == [12] * 12
    assert prefixes().lengths(call(), Layout(1, 1, 1, 4, behind=2)).tolist() == [6] * 6
    assert told.asked == []


def test_masks_are_looked_at_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, a=LENGTHS, b=LENGTHS.copy())
    made = prefixes("b", "a")
    assert made.lengths(call(), LAYOUT).tolist() == LENGTHS.tolist()
    made.lengths(call(), LAYOUT)
    assert told.asked == [("a", "b")]
    made.lengths({**call(), "steps": 3}, LAYOUT)  # a number is a part of the shape
    assert len(told.asked) == 2
    for size in range(2, SHAPES_KEPT + 1):
        made.lengths(call(size), LAYOUT)
    assert len(told.asked) == SHAPES_KEPT + 1
    made.lengths({**call(), "steps": 3}, LAYOUT)
    assert len(told.asked) == SHAPES_KEPT + 1  # the oldest one made room, this one did not
    made.lengths(call(), LAYOUT)
    assert len(told.asked) == SHAPES_KEPT + 2


@pytest.mark.parametrize(("other", "name"), [(None, "b"), (LENGTHS + 1, "b")])
def test_masks_that_differ_or_are_no_prefixes_are_refused(
    other: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Told(monkeypatch, a=LENGTHS, b=other)
    with pytest.raises(NotAPrefix, match=f"mask `{name}`"):
        prefixes("a", "b").lengths(call(), LAYOUT)
    Told(monkeypatch, a=None)
    with pytest.raises(NotAPrefix):
        prefixes("a").lengths(call(), LAYOUT)


def test_what_tokens_see_within_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, a=LENGTHS)
    made = prefixes("a")
    assert made.seen(call(), LAYOUT, None).tolist() == LENGTHS.tolist()
    spans = made.seen(call(), LAYOUT, NEAR)
    wanted = seen_within(LENGTHS, NEAR, 4)
    assert wanted is not None
    assert spans.tolist() == wanted.tolist()
    assert made.seen(call(), LAYOUT, NEAR) is spans
    wider = made.seen(call(), LAYOUT, Reach(2, 0))
    assert wider.tolist() != spans.tolist()
    assert made.seen(call(), LAYOUT, NEAR) is spans
    picked = Reach(1, 1, 1, (1.0,))
    for positions in (4, 2):
        wanted = seen_within(LENGTHS, picked, positions)
        assert wanted is not None
        found = made.seen(call(), Layout(1, 3, 4 // positions, positions), picked)
        assert found.tolist() == wanted.tolist()
    told.lengths["a"] = np.array([3, 8, 12, 12])
    with pytest.raises(NoChunks):
        made.seen(call(7), Layout(1, 1, 1, 4), NEAR)


def test_spans_of_so_many_shapes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    Told(monkeypatch, a=LENGTHS)
    made = prefixes("a")
    first = made.seen(call(1), LAYOUT, NEAR)
    for size in range(2, SHAPES_KEPT + 1):
        made.seen(call(size), LAYOUT, NEAR)
    assert made.seen(call(1), LAYOUT, NEAR) is first
    made.seen(call(SHAPES_KEPT + 1), LAYOUT, NEAR)
    assert made.seen(call(1), LAYOUT, NEAR) is not first


def test_what_tokens_of_equally_long_chunks_see() -> None:
    assert chunks_alike(12, 3, None, 4).tolist() == LENGTHS.tolist()
    assert chunks_alike(6, 1, None, 6).tolist() == [6] * 6
    wanted = seen_within(LENGTHS, NEAR, 4)
    assert wanted is not None
    assert chunks_alike(12, 3, NEAR, 4).tolist() == wanted.tolist()


@pytest.mark.parametrize(("window", "keys", "reach"), [
    (None, None, None), ("window", None, Reach(1, 0, 0)), ("window", "keys", Reach(1, 0, 1)),
])  # fmt: skip
def test_what_tokens_see_where_sizes_alone_matter(window: Any, keys: Any, reach: Reach | None) -> None:
    found = one_chunk(6, SimpleNamespace(window=window, keys=keys))  # type: ignore[arg-type]
    assert found.tolist() == chunks_alike(6, 1, reach, 6).tolist()


def test_a_window_needs_chunks_in_one_of_the_recorded_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, a=LENGTHS)
    window = SimpleNamespace(at=None)

    def lowered(window: Any) -> Any:
        policy = SimpleNamespace(name="p", cache=SimpleNamespace(window=window))
        return SimpleNamespace(
            policy=policy, rows=SimpleNamespace(prefixes={"a"}), captured=SimpleNamespace(model_class="Model")
        )

    bound: Any = SimpleNamespace(reach=NEAR)
    check_chunks(lowered(window), bound, [call(1), call(2)])
    assert len(told.asked) == 2
    told.lengths["a"] = np.full(12, 12)
    with pytest.raises(NoWindow, match="all tokens see all tokens"):
        check_chunks(lowered(window), bound, [call(1), call(2)])
    check_chunks(lowered(None), bound, [call(1)])
    assert len(told.asked) == 4


def test_masks_are_prefixes_where_they_are_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: Any = None
    told = Told(monkeypatch, a=LENGTHS, b=LENGTHS.copy(), c=LENGTHS + 1, d=None)
    assert provable(captured, ("a", "b", "c", "d"), (call(),)) == {"a", "b"}
    assert provable(captured, ("d", "b"), (call(), call())) == {"b"}
    assert provable(captured, ("d",), (call(),)) == frozenset()
    told.asked.clear()
    assert provable(captured, (), (call(),)) == frozenset()
    assert told.asked == []
    lengths = iter([{"a": LENGTHS, "b": None}, {"a": None, "b": LENGTHS}])
    monkeypatch.setattr(module, "lengths_of", lambda *_: next(lengths))
    assert provable(captured, ("a", "b"), (call(), call())) == frozenset()
