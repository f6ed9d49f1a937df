"""One region under a selection, on blocks that are one multiplication: what is computed, kept, and stands in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile.capture.part import Input, Shared, Stream, Weight
from mccompile.runtime.execute import Postlude, keep_whole, merge, pass_on, reused, selected
from mccompile.runtime.forecast import Weights
from mccompile.runtime.operands import Misplaced
from mccompile.runtime.store import Memory

KEY = 0, "y"
TOKENS = 4


class Chosen:
    """The rows that a selection has: tokens of one sample, or of all."""

    def __init__(self, positions: np.ndarray, sample: int | None, seen: np.ndarray) -> None:
        self.positions, self.sample, self.seen = positions.tolist(), sample, seen
        self.whole = sample is None and len(self.positions) == len(seen)
        self.at = (slice(None) if sample is None else slice(sample, sample + 1)), self.positions


class Blocks:
    """A model of one block, `y = factor * x`, and it makes `z = x + 1` and `w = x + 2` too."""

    def __init__(self, factor: float = 3.0) -> None:
        self.factor, self.given = factor, list[tuple[Any, bool]]()

    def select(self, positions: np.ndarray, sample: int | None, seen: np.ndarray, *more: object) -> Chosen:
        return Chosen(positions, sample, seen)

    def enter(self, region: Any, env: Any, rows: Chosen) -> dict[str, torch.Tensor]:
        return {"x": env["x"][rows.at]}

    def run_rows(self, region: Any, entered: Any, *more: object) -> dict[str, torch.Tensor]:
        return {**entered, "y": self.factor * entered["x"], "z": entered["x"] + 1, "w": entered["x"] + 2}

    def nothing(self, name: str, made: torch.Tensor, rows: Chosen, env: Any) -> torch.Tensor:
        return torch.zeros_like(env["x"])

    def keep_nothing(self, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(like)

    def put(self, name: str, into: torch.Tensor, made: torch.Tensor, rows: Chosen) -> None:
        into[rows.at] = made

    keep_rows = put

    def give(self, name: str, into: torch.Tensor, made: torch.Tensor, rows: Chosen, add: bool) -> None:
        self.given.append((made.flatten().tolist(), add))

    def replaces(self, name: str, kept: torch.Tensor, rows: Chosen) -> bool:
        return rows.whole

    def move_rows(self, name: str, source: torch.Tensor, target: torch.Tensor, rows: Chosen) -> None:
        target[rows.at] = source[rows.at]

    def kept_values(self, kept: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return kept.to(like.dtype)

    def token_axis(self, name: str) -> int:
        return 1

    def kept_of(self, region: Any, number: int, before: Any, after: Any) -> dict[tuple[int, str], torch.Tensor]:
        subtract = region.keep == "residual"
        return {(number, made): after[made] - before[s] if subtract and s else after[made] for s, made in region.pairs}


def region(keep: str | None = "residual", source: str = "x", **more: Any) -> Any:
    made = {"keep": keep, "pairs": ((source, "y"),), "depth": 1, "passes": 0, "nearest": None}
    return SimpleNamespace(**{**made, **more})


def call(value: float, samples: int = 1) -> dict[str, torch.Tensor]:
    return {"x": torch.full((samples, TOKENS), value)}


def run(value: float, tokens: list[int], memory: Memory, of: Any = None, samples: int = 1, **more: Any) -> list[float]:
    """The stream that leaves the region when these tokens of the first sample are computed, and all of the others."""
    blocks: Any = more.pop("blocks", None) or Blocks()
    mask = np.ones((samples, TOKENS), bool)
    mask[0] = np.isin(np.arange(TOKENS), tokens)
    env = call(value, samples)
    rows = selected(blocks, mask, np.full(TOKENS, TOKENS), env, {})
    out = merge(blocks, of or region(), 0, env, {}, rows, memory, **more)
    assert out["x"] is env["x"]
    found: list[float] = out["y"].flatten().tolist()
    return found


def test_tokens_are_selected_once_for_all_samples_or_for_each() -> None:
    def of(mask: list[list[int]], seen: int = 4) -> list[tuple[int | None, list[int], bool]]:
        blocks: Any = Blocks()
        rows: Any = selected(blocks, np.array(mask, bool), np.full(seen, seen), {}, {})
        return [(one.sample, one.positions, one.whole) for one in rows]

    assert of([[1, 0, 1, 0]] * 2) == [(None, [0, 2], False)]
    assert of([[1, 1, 1, 1]] * 2) == [(None, [0, 1, 2, 3], True)]
    assert of([[1, 0, 0, 0], [0, 1, 1, 0]]) == [(0, [0], False), (1, [1, 2], False)]
    assert of([[0, 0, 0, 0], [0, 1, 0, 0]]) == [(1, [1], False)]
    assert of([[0, 0, 0, 0]] * 2) == []
    assert of([[1, 0], [0, 0]], seen=4) == [(0, [0, 2, 3], False)]  # what lies behind goes with the first token
    assert of([[0, 1], [0, 1]], seen=3) == [(None, [1, 2], False)]


def test_the_others_have_their_last_residual_on_top_of_what_enters() -> None:
    memory = Memory()
    assert run(1.0, [0, 1, 2, 3], memory) == [3, 3, 3, 3]
    assert run(2.0, [1, 2], memory) == [4, 6, 6, 4]  # 2 + the residual of 1
    assert memory.kept[KEY].tolist() == [[2, 4, 4, 2]]
    assert run(5.0, [], memory) == [7, 9, 9, 7]
    merged = memory.merged[KEY]
    run(5.0, [0], memory)
    assert memory.merged[KEY] is merged


def test_the_others_have_their_last_output() -> None:
    memory, of = Memory(), region("output")
    run(1.0, [0, 1, 2, 3], memory, of)
    assert run(2.0, [1], memory, of) == [3, 6, 3, 3]
    assert run(2.0, [3], memory, region("output", source="")) == [3, 6, 3, 6]
    assert memory.kept[KEY].tolist() == [[3, 6, 3, 6]]


def test_what_nothing_is_kept_of_holds_what_entered_or_nothing() -> None:
    assert run(2.0, [1], Memory()) == [2, 6, 2, 2]
    memory = Memory()
    assert run(2.0, [1], memory, region("residual", source="")) == [0, 6, 0, 0]
    assert memory.kept[KEY].tolist() == [[0, 6, 0, 0]]
    for keep in (None, "increment"):
        none = Memory()
        assert run(2.0, [0, 1], none, region(keep)) == [6, 6, 2, 2]
        assert not none.kept


def test_each_sample_selects_its_own_rows() -> None:
    memory = Memory()
    run(1.0, [0, 1, 2, 3], memory, samples=2)
    assert run(2.0, [3], memory, samples=2) == [4, 4, 4, 6, 6, 6, 6, 6]


def test_earlier_results_move_back_token_by_token() -> None:
    memory, of = Memory(), region(depth=3)
    for value, tokens in ((1.0, [0, 1, 2, 3]), (2.0, [0, 1]), (3.0, [0]), (4.0, [0, 3])):
        run(value, tokens, memory, of)
    results = (memory.kept[KEY], *memory.older[KEY])
    assert torch.cat(results).tolist() == [[8, 4, 2, 8], [6, 2, 0, 2], [4, 0, 0, 0]]
    assert run(10.0, [], memory, of, weights=Weights((2.0, -1.0, 0.5))) == [22, 16, 14, 24]
    run(5.0, [0, 1, 2, 3], memory, of)
    results = (memory.kept[KEY], *memory.older[KEY])
    assert torch.cat(results).tolist() == [[10, 10, 10, 10], [8, 4, 2, 8], [6, 2, 0, 2]]


def test_all_rows_are_kept_at_once_and_the_oldest_is_forgotten() -> None:
    blocks, memory, of = Blocks(), Memory(), region(depth=3, passes=2)
    for value in (1.0, 2.0, 3.0, 4.0):
        env = call(value)
        keep_whole(blocks, of, 0, env, {**env, "y": 3 * env["x"]}, memory)  # type: ignore[arg-type]
    assert [float(t[0, 0]) for t in (memory.kept[KEY], *memory.older[KEY])] == [8, 6, 4]
    assert [float(t[0, 0]) for t in memory.passed[KEY]] == [8, 6]
    plain = Memory()
    for value in (1.0, 2.0):
        keep_whole(blocks, region(), 0, call(value), {"y": 3 * call(value)["x"]}, plain)  # type: ignore[arg-type]
    assert (plain.older, plain.passed, float(plain.kept[KEY][0, 0])) == ({}, {}, 4.0)


def test_what_was_given_at_a_step_is_noted_in_memory_of_its_own() -> None:
    blocks, memory, after = Blocks(), Memory(), torch.ones(1, TOKENS)
    pass_on(blocks, region("output", passes=1), 0, call(1.0), {"y": after}, memory)  # type: ignore[arg-type]
    after.zero_()
    assert memory.passed[KEY][0].sum() == TOKENS
    run(2.0, [0], memory, region("residual", passes=2))
    assert [t[0, :2].tolist() for t in memory.passed[KEY]] == [[4, 0], [1, 1]]


def test_the_last_result_alone_stands_in_as_it_is() -> None:
    blocks: Any = Blocks()
    memory = Memory(kept={KEY: torch.ones(1, 4)}, older={KEY: (torch.full((1, 4), 10.0),)})
    memory.passed[KEY] = (torch.full((1, 4), 100.0),)
    like = torch.zeros(1, dtype=torch.float64)
    for weights, wanted in ((None, 1.0), (Weights((1.0, 0.0)), 1.0), (Weights((2.0, 1.0), (0.5,)), 62.0)):
        found = reused(blocks, KEY, like, memory, weights)
        assert (found.dtype, found[0, 0]) == (torch.float64, wanted)


def test_tokens_that_take_from_others_get_their_results() -> None:
    """All rows are computed: nothing is given. What is added to the stream is added, and an output replaces it."""
    cases = (("residual", "x", 4.0, True), ("output", "x", 6.0, False), ("residual", "", 6.0, False))
    for keep, source, made, add in cases:
        blocks, memory = Blocks(), Memory()
        run(2.0, [1, 2], memory, region(keep, source, nearest="latent"), blocks=blocks)
        assert blocks.given == [([made] * 2, add)]
        assert not memory.kept
        run(2.0, [0, 1, 2, 3], memory, region(keep, source, nearest="latent"), blocks=blocks)
        assert len(blocks.given) == 1


def test_streams_within_a_region_are_given_to_whoever_looks_at_them() -> None:
    blocks: Any = Blocks()
    for tokens, expected in (([0, 1, 2, 3], [3.0] * 4), ([1], [0.0, 3.0, 0.0, 0.0])):
        mask = np.isin(np.arange(TOKENS), tokens)[None]
        env = call(2.0)
        rows = selected(blocks, mask, np.full(TOKENS, TOKENS), env, {})
        out = merge(blocks, region(), 0, env, {}, rows, Memory(), watched=("x", "y", "z", "w", "other"))
        assert out["z"][0].tolist() == expected
        assert out["w"][0].tolist() == [value and value + 1 for value in expected]
        assert out["x"] is env["x"]
        assert "other" not in out


def test_outputs_of_the_final_layers_are_in_memory_of_their_own() -> None:
    """A stream that is given back is written to again in the next call."""
    stream, text = torch.ones(2, 2), torch.full((2,), 5.0)
    seen: list[Any] = []

    def graph(*arguments: Any) -> tuple[Any, ...]:
        seen.append(arguments)
        return stream[0], text, 7

    part = SimpleNamespace(takes=(Stream("x"), Shared("text"), Input("size")), module=None)
    lowered: Any = SimpleNamespace(postlude=part)
    postlude = Postlude(lowered, lambda module, role: graph)
    assert postlude.shared == ("text",)
    view, same, number = postlude.run({"x": stream}, {"text": text}, {"size": 3})
    assert seen == [(stream, text, 3)]
    assert isinstance(view, torch.Tensor)
    stream.zero_()
    assert view.tolist() == [1.0, 1.0]
    assert (same is text, number) == (True, 7)
    part.takes = (Weight("w"),)
    odd = Postlude(lowered, lambda module, role: graph)
    with pytest.raises(Misplaced, match="a postlude part takes"):
        odd.run({}, {}, {})
