"""Keys that measures pick: attention reads a window, a sink, and the best keys of the chunks between (picking.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import fx

import mccompile.api as api
from mccompile.capture.types import CapturedModel
from mccompile.diagnostics.source import Source
from mccompile.generate.compare import last_call
from mccompile.generate.flops import count, prices_of
from mccompile.lowering.key_picks import FEWEST
from mccompile.lowering.types import LoweredRegion
from mccompile.pipelines.budgets import keeping_for
from mccompile.policy.bind import Reach
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.joint import Joint
from mccompile.runtime.rows import KeyChoices, Rows
from mccompile.runtime.trace import share_computed
from mccompile.runtime.window import move_window
from tests.runtime.conftest import Tiny, embeds
from tests.runtime.picking import CHUNKS, FEW, FRAME, TOKENS, furthest, recorded
from tests.runtime.test_keeping import Counted
from tests.runtime.test_pair import APART, TOGETHER, trace

NEAR = {"rtol": 0, "atol": 3e-5}
KEYS = """
  param weight = 0.3 in 0.01..0.99
  param reach  = 1 in 1..9
  param first  = 0 in 0..9
  param budget = 1 in 1..9
  signal asked     = attention(key) | dilate(by = 3)
  signal relevance = weight * asked - (1 - weight) * redundancy(key)
  cache { window: reach chunks  sink: first chunks  keys: top budget chunks by relevance  MORE }
"""
EVERYTHING = f"""policy everything {{{KEYS}
  phase all {{ compute }}
  chunks {{ pending: PENDING  finished: FINISHED }}
}}
"""
MOTION = f"""policy motion {{{KEYS}
  param threshold = 0.5 in 0.01..5
  signal drift  = rel_l1(modulation)
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for 2 steps       {{ compute }}
  phase coarse until 1 refreshes {{ reuse chunk while accumulate(drift) < threshold }}
  phase fine                     {{ reuse token while accumulate(drift * motion) < threshold }}
  layers blocks[*] {{ keep residual }}
  chunks {{ pending: PENDING  finished: FINISHED }}
  BRANCHES
}}
"""


def compiled(
    tiny: Tiny, policy: str, life: str = "compute", branches: str = "", more: str = "", **options: object
) -> CompiledModel:
    pending, finished = ("skip", "refresh") if life == "skip" else (life, life)
    text = policy.replace("PENDING", pending).replace("FINISHED", finished)
    text = text.replace("BRANCHES", branches).replace("MORE", more)
    options = {"backend": "eager", "captured": tiny.captured, "call": tiny.call, **options}
    return api.compile(tiny.pipe, Source("test.policy", text), **options)  # type: ignore[arg-type]


REACHES = [(1, 0, 1), (1, 1, 1), (2, 0, 1)]


@pytest.mark.parametrize(("last", "first", "budget"), REACHES)
def test_computing_everything_is_the_stock_transformer_under_a_dense_mask(
    tiny: Tiny, last: int, first: int, budget: int
) -> None:
    model = compiled(tiny, EVERYTHING, reach=last, first=first, budget=budget)
    video, calls = recorded(tiny, model)
    assert share_computed(model.events) == 1.0
    assert furthest(calls, Reach(last, first, budget)) < NEAR["atol"]
    model.undo()
    window = EVERYTHING.replace("  keys: top budget chunks by relevance", "")
    window = "\n".join(line for line in window.splitlines() if "signal" not in line and "param weight" not in line)
    compiled(tiny, window.replace("param budget = 1 in 1..9", ""), reach=last, first=first)
    assert float((tiny.run(**FEW) - video).abs().max()) > 1e-2  # the picked keys are no small matter


@pytest.mark.parametrize("samples", [1, 2])
def test_partial_calls_are_the_stock_transformer_with_kept_tokens_and_picks(tiny: Tiny, samples: int) -> None:
    text = torch.cat([embeds(seed=s)["prompt_embeds"] for s in range(samples)])  # type: ignore[misc]
    call: dict[str, object] = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": -text}
    of_these = dataclasses.replace(tiny, call=call)
    model = compiled(of_these, MOTION)
    _, calls = recorded(of_these, model, generator=[torch.Generator().manual_seed(s) for s in range(samples)])
    frames = torch.stack([c.computed.unflatten(1, (-1, FRAME)) for c in calls])[:, :, 1::2]  # the last of each chunk
    share = frames.float().mean(-1)  # [calls, samples, chunks]
    kept, anew = (share > 0) & (share < 1), share == 1
    assert bool((kept.cummax(0).values & anew)[..., 2:].any())  # chunks read a pick that is kept, and pick anew later
    assert furthest(calls, Reach(1, 0, 1)) < NEAR["atol"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # PyTorch's own use of it
def test_packages_pick_the_same_keys(tiny: Tiny) -> None:
    model = compiled(tiny, MOTION, backend="inductor")
    _, calls = recorded(tiny, model)
    assert furthest(calls, Reach(1, 0, 1)) < 1e-4


@pytest.mark.parametrize("wrong", ["first frame", "never anew", "always anew"])
def test_the_oracle_tells_picks_that_are_made_otherwise(tiny: Tiny, wrong: str) -> None:
    model = compiled(tiny, MOTION)
    _, calls = recorded(tiny, model)
    assert furthest(calls, Reach(1, 0, 1), wrong) > 1e-3


def test_skipped_and_finished_chunks_change_nothing(tiny: Tiny) -> None:
    model = compiled(tiny, EVERYTHING)
    wanted = tiny.run(**FEW)
    model.undo()
    model = compiled(tiny, EVERYTHING, "skip")
    torch.testing.assert_close(tiny.run(**FEW), wanted, **NEAR)
    assert share_computed(model.events) < 0.75


@pytest.mark.parametrize("more", [{"reach": 1, "budget": CHUNKS - 1}, {"reach": 2, "first": 2}])
def test_where_nothing_is_left_out_no_bit_changes(tiny: Tiny, more: dict[str, object]) -> None:
    own = ("key", "cache", "relevance", *(f"param {name}" for name in ("weight", "reach", "first", "budget")))
    whole = "\n".join(line for line in MOTION.splitlines() if not any(word in line for word in own))
    model = compiled(tiny, whole)
    wanted = tiny.run(**FEW)
    model.undo()
    compiled(tiny, MOTION, **more)
    assert torch.equal(tiny.run(**FEW), wanted)


def test_folding_changes_no_decision(tiny: Tiny) -> None:
    results = []
    for fold in (True, False):
        model = compiled(tiny, MOTION, "skip", fold=fold)
        results.append((tiny.run(**FEW), [(e.row, e.branch, e.chunk, e.action, e.computed) for e in model.events]))
        model.undo()
    assert results[0][1] == results[1][1]
    assert torch.equal(results[0][0], results[1][0])
    assert {action for _, _, _, action, _ in results[0][1]} == {"skip", "reuse", "partial", "full"}


def test_parameters_are_free(tiny: Tiny) -> None:
    """Other weights, budgets and windows compile nothing."""
    built: list[object] = []

    def counting(module: fx.GraphModule, role: object) -> Callable[..., Any]:
        built.append(role)
        return module.forward

    other = {"weight": 0.9, "first": 1}
    model = compiled(tiny, EVERYTHING, **other)
    wanted = tiny.run(**FEW)
    model.undo()
    model = compiled(tiny, EVERYTHING, backend=counting)
    assert float((tiny.run(**FEW) - wanted).abs().max()) > 1e-2
    before = len(built)
    model.set_parameters(**other)
    assert torch.equal(tiny.run(**FEW), wanted)
    assert len(built) == before


MOVING = f"""policy moving {{{KEYS}
  signal motion = frame_diff(latent)
  phase warmup for 1 steps {{ compute }}
  phase move               {{ compute top 60% of tokens by motion }}
  layers blocks[*] {{ keep residual }}
  chunks {{ pending: PENDING  finished: FINISHED }}
  BRANCHES
}}
"""


@pytest.mark.parametrize(("policy", "life", "changed"), [(MOTION, "skip", False), (MOVING, "compute", True)])
def test_branches_in_one_batch_are_those_one_after_the_other(
    tiny: Tiny, policy: str, life: str, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """changed: of some rows the prediction of the other branch's call is wrong, and what it replaced is put back."""
    results = []
    for branches in (APART, TOGETHER):
        model = compiled(tiny, policy, life, branches)

        def spoiled(inputs: Mapping[str, Any], moment: Any, own: Any = model.runner.call) -> Any:
            odd = changed and moment.branch == "uncond" and moment.row % 4 == 3
            given = {n: v * 1.01 if n == "hidden_states" else v for n, v in inputs.items()} if odd else inputs
            return own(given, moment)

        monkeypatch.setattr(model.runner, "call", spoiled)
        results.append((tiny.run(**FEW), trace(model)))
        model.undo()
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[1][0], results[0][0], **NEAR)


@pytest.mark.parametrize("kept", ["float8", "bfloat16"])
def test_keys_are_picked_from_those_that_are_kept_in_less(tiny: Tiny, kept: str) -> None:
    videos = []
    for more in ("", f"dtype: {kept}"):
        model = compiled(tiny, EVERYTHING, more=more)
        videos.append(tiny.run(**FEW))
        model.undo()
    error = float((videos[1] - videos[0]).square().mean().sqrt() / videos[0].square().mean().sqrt())
    assert 0 < error < 0.3


def test_picks_on_the_host_change_no_bit(tiny: Tiny) -> None:
    videos = []
    for more in ("", "device: cpu"):
        model = compiled(tiny, MOTION, "skip", more=more)
        if more:
            model.runner.engine.blocks.staging = Counted(torch.device("cpu"))
        videos.append(tiny.run(**FEW))
        model.undo()
    assert torch.equal(videos[0], videos[1])


def test_flops_are_those_of_the_keys_that_are_read_and_of_the_picks(tiny: Tiny) -> None:
    found = []
    for budget in (CHUNKS, 1):
        model = compiled(tiny, EVERYTHING, budget=budget)
        with last_call(model) as call:
            tiny.run(**FEW)
        prices = prices_of(model, call)
        found.append(count(model, model.events, prices))
        model.undo()
    calls = len({(e.row, e.branch) for e in model.events})
    left = calls * TOKENS * TOKENS * sum(max(0, chunk - 1) for chunk in range(CHUNKS))  # rows times keys left out
    asked = calls * FRAME * TOKENS * sum(chunk for chunk in range(2, CHUNKS))  # rows times candidates
    price = sum(block.per_key for block in prices.blocks)
    assert found[0] - found[1] == pytest.approx(price * left - price / 2 * asked, rel=1e-9)


def test_bytes_of_picks_are_predicted(tiny: Tiny) -> None:
    """To the byte, and nothing is run: of two branches, three blocks and two heads the picks of two chunks."""
    assert tiny.captured is not None
    made, found = tiny.captured, []
    size = {**tiny.call, "height": 48, "width": 64, "num_frames": 29, "guidance_scale": 3.0}
    for budget in (CHUNKS, 1):
        model = compiled(tiny, EVERYTHING, budget=budget)
        tiny.run(**FEW)
        stores = [s.memory for r in model.runner.requests.values() for s in r.branches.values()]
        picks = sum(t.nbytes for memory in stores for chosen in memory.chosen.values() for t in chosen)
        model.undo()
        bound = model.runner.bound
        keeping = keeping_for(tiny.pipe, bound.ir, made.model, made.prefixes, made.calls, size, bound.values)
        assert keeping.predicted is not None
        found.append((picks, keeping.predicted.key_values))
    places = [FEWEST, 2 * TOKENS]  # chunks 2 and 3 pick among the chunks before
    assert [picks for picks, _ in found] == [2 * 3 * 2 * n * 4 for n in places]
    assert found[1][1] - found[0][1] == found[1][0] - found[0][0]


def test_what_is_picked_in_another_window_of_rows_is_dropped(tiny: Tiny) -> None:
    model = compiled(tiny, EVERYTHING)
    tiny.run(**FEW)
    (request,) = model.runner.requests.values()
    store = next(iter(request.branches.values()))
    assert store.window is not None
    assert store.memory.chosen
    moved = dataclasses.replace(store.window, places=store.window.places[1:])
    engine = model.runner.engine
    move_window(store, moved, engine.lowered.captured, engine.blocks, {}, {})
    assert not store.memory.chosen
    assert not store.memory.buffers
    assert store.course.history.chunk(0, 1).lost == "keys were picked in another window"


@pytest.mark.parametrize("sample", [None, 0, 1])
def test_picks_of_a_branch_that_was_run_ahead_are_put_back(sample: int | None) -> None:
    """The leader's stand first, and stay as they were made."""
    joint, before = Joint(1), torch.arange(2 * 2 * 3, dtype=torch.int32).reshape(2, 2, 3)
    joint.memory.buffers, joint.memory.chosen = {0: ()}, {0: (before.clone(),)}
    kind = SimpleNamespace(buffers=())
    captured = cast(CapturedModel, SimpleNamespace(streams=(), kinds=[kind], blocks=[SimpleNamespace(kind=0)]))
    choice = KeyChoices(torch.zeros(1), 3, anew=True)
    rows = cast(Rows, SimpleNamespace(sample=sample, choice=choice))
    joint.save(captured, 0, LoweredRegion(0, 0, None, ()), rows)
    (chosen,) = joint.memory.chosen[0]
    chosen[:] = -1
    joint.taken().back()
    wanted = before.clone()
    wanted[:1] = -1
    if sample == 0:
        wanted[:] = -1  # no picks of the follower were made
    assert torch.equal(chosen, wanted)
