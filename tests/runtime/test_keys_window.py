"""A window of chunks: attention reads the keys of the last chunks and of the first ones, and of no others.

The oracle is the stock pipeline, whose every attention under a mask gets a denser one from a torch function mode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel
from torch import fx
from torch.nn import functional as nnf
from torch.overrides import TorchFunctionMode

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.generate.compare import last_call
from mccompile.generate.flops import count, prices_of
from mccompile.lowering.errors import NoWindow
from mccompile.policy.bind import Reach
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.errors import NoChunks
from mccompile.runtime.trace import share_computed
from tests.lowering.test_windows import seen_by
from tests.runtime.conftest import Tiny, embeds, transformer
from tests.runtime.test_pair import APART, TOGETHER, trace

CHUNKS, TOKENS = 4, 24  # of the tiny pipeline: chunks of a video, tokens of a chunk
CACHE = "cache { window: reach chunks  sink: first chunks }"
NEAR = {"rtol": 0, "atol": 3e-5}
EVERYTHING = """policy everything {
  param reach = 2 in 1..9
  param first = 1 in 0..9
  phase all { compute }
  chunks { pending: PENDING  finished: FINISHED }
  cache { window: reach chunks  sink: first chunks }
}
"""
MOTION = """policy motion {
  param threshold = 0.5 in 0.01..5
  param reach = 2 in 1..9
  param first = 0 in 0..9
  signal drift  = rel_l1(modulation)
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for 2 steps       { compute }
  phase coarse until 1 refreshes { reuse chunk while accumulate(drift) < threshold }
  phase fine                     { reuse token while accumulate(drift * motion) < threshold }
  layers blocks[*] { keep residual }
  chunks { pending: skip  finished: refresh }
  cache { window: reach chunks  sink: first chunks }
  BRANCHES
}
"""


class Dense(TorchFunctionMode):
    """Every attention under a mask is within a window, by a mask of every token against every key."""

    def __init__(self, reach: Reach) -> None:
        super().__init__()
        self.reach = reach

    def __torch_function__(
        self, func: Callable[..., object], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:  # fmt: skip
        given = dict(kwargs or {})
        if func is nnf.scaled_dot_product_attention and given.get("attn_mask") is not None:
            chunk = np.arange(args[0].size(2) if args else given["query"].size(2)) // TOKENS
            given["attn_mask"] = given["attn_mask"] & seen_by(chunk, self.reach)
        return func(*args, **given)


def compiled(tiny: Tiny, policy: str, **more: object) -> CompiledModel:
    more = {"backend": "eager", "captured": tiny.captured, "call": tiny.call, **more}
    return api.compile(tiny.pipe, Source("test.policy", policy.replace("BRANCHES", "")), **more)  # type: ignore[arg-type]


def everything(pending: str = "skip", finished: str = "refresh") -> str:
    return EVERYTHING.replace("PENDING", pending).replace("FINISHED", finished)


@pytest.mark.parametrize(("last", "first"), [(1, 0), (2, 0), (2, 1), (1, 2)])
def test_computing_everything_is_the_pipeline_under_a_dense_mask(tiny: Tiny, last: int, first: int) -> None:
    with Dense(Reach(last, first)):
        wanted = tiny.run()
    stock = tiny.run()
    assert float((wanted - stock).abs().max()) > 1e-2  # the window is no small matter
    model = compiled(tiny, everything("compute", "compute"), reach=last, first=first)
    torch.testing.assert_close(tiny.run(), wanted, **NEAR)
    assert share_computed(model.events) == 1.0


def test_skipped_and_finished_chunks_change_nothing_under_a_window(tiny: Tiny) -> None:
    with Dense(Reach(2, 1)):
        wanted = tiny.run()
    model = compiled(tiny, everything())
    torch.testing.assert_close(tiny.run(), wanted, **NEAR)
    assert share_computed(model.events) < 0.75


def test_tokens_selected_one_by_one_see_what_they_see_together(tiny: Tiny) -> None:
    """A threshold that always fires: all tokens of active chunks, by the rule of tokens."""
    with Dense(Reach(2, 0)):
        wanted = tiny.run()
    compiled(tiny, MOTION, threshold=0.01)
    torch.testing.assert_close(tiny.run(), wanted, **NEAR)


def test_a_window_over_all_chunks_changes_no_bit(tiny: Tiny) -> None:
    unbounded = MOTION.replace(CACHE, "").replace("param reach = 2 in 1..9", "").replace("param first = 0 in 0..9", "")
    compiled(tiny, unbounded)
    wanted = tiny.run()
    compiled(tiny, MOTION, reach=CHUNKS)
    assert torch.equal(tiny.run(), wanted)


def test_folding_changes_no_decision(tiny: Tiny) -> None:
    results = []
    for fold in (True, False):
        model = compiled(tiny, MOTION, fold=fold, first=1)
        results.append((tiny.run(), [(e.row, e.branch, e.chunk, e.action, e.computed) for e in model.events]))
        model.undo()
    assert results[0][1] == results[1][1]
    assert torch.equal(results[0][0], results[1][0])
    assert {action for _, _, _, action, _ in results[0][1]} == {"skip", "reuse", "partial", "full"}


def test_parameters_are_free(tiny: Tiny) -> None:
    """Another window compiles nothing."""
    built: list[object] = []

    def counting(module: fx.GraphModule, role: object) -> Callable[..., Any]:
        built.append(role)
        return module.forward

    model = compiled(tiny, everything(), backend=counting)
    tiny.run()
    before = len(built)
    model.set_parameters(reach=1, first=0)
    with Dense(Reach(1, 0)):
        model.undo()
        wanted = tiny.run()
    model = compiled(tiny, everything(), reach=3)
    model.set_parameters(reach=1, first=0)
    torch.testing.assert_close(tiny.run(), wanted, **NEAR)
    assert len(built) == before


def test_branches_in_one_batch_are_those_one_after_the_other(tiny: Tiny) -> None:
    results = []
    for branches in (APART, TOGETHER):
        model = compiled(tiny, MOTION.replace("BRANCHES", branches), first=1)
        results.append((tiny.run(), trace(model)))
        model.undo()
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[1][0], results[0][0], **NEAR)


def test_samples_of_a_batch_see_their_own_rows(tiny: Tiny) -> None:
    runs = []
    for samples in ([0], [1], [0, 1]):
        text = torch.cat([embeds(seed=s)["prompt_embeds"] for s in samples])  # type: ignore[misc]
        call: dict[str, object] = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": -text}
        of_these = dataclasses.replace(tiny, call=call)
        model = compiled(of_these, MOTION, first=1)
        runs.append((of_these.run(generator=[torch.Generator().manual_seed(s) for s in samples]), model.events))
        model.undo()
    assert [e.computed for e in runs[0][1]] != [e.computed for e in runs[1][1]]
    torch.testing.assert_close(runs[2][0], torch.cat([runs[0][0], runs[1][0]]), **NEAR)


def test_flops_are_those_of_the_keys_that_are_seen(tiny: Tiny) -> None:
    found = []
    for last in (CHUNKS, 1):
        model = compiled(tiny, everything("compute", "compute"), reach=last, first=0)
        with last_call(model) as call:
            tiny.run()
        prices = prices_of(model, call)
        found.append(count(model, model.events, prices))
        model.undo()
    calls = len({(e.row, e.branch) for e in model.events})
    fewer = calls * TOKENS * sum(TOKENS * chunk for chunk in range(CHUNKS))  # rows times keys
    price = sum(block.per_key for block in prices.blocks)
    assert price == 3 * 4 * 32  # blocks; two products over the width, two operations each
    assert found[0] - found[1] == pytest.approx(price * fewer, rel=1e-9)


# ---- where there are no chunks
WINDOW = everything()


def test_a_model_whose_tokens_see_all_tokens_is_refused(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    with pytest.raises(NoWindow, match=r"in `blocks\.0\.attn1` every token sees all tokens") as caught:
        api.compile(small_wan, Source("test.policy", WINDOW), captured=captured_wan, backend="eager")
    assert caught.value.diagnostics[0].span is not None
    assert caught.value.diagnostics[0].span.text == "window: reach chunks"


def call(frames: int, height: int, width: int) -> dict[str, object]:
    latents, text = torch.randn(1, 4, frames, height, width), torch.randn(1, 7, 16)
    at = torch.full((1, frames), 500)
    more = {"enable_diffusion_forcing": True, "return_dict": False}
    return {"hidden_states": latents, "timestep": at, "encoder_hidden_states": text, **more}


def test_calls_of_a_single_chunk_show_no_chunks() -> None:
    model: SkyReelsV2Transformer3DModel = transformer()
    with pytest.raises(NoWindow, match="all tokens see all tokens"):
        api.compile(
            model, Source("test.policy", WINDOW), probe=call(2, 6, 14), second=call(2, 10, 22), backend="eager"
        )


def test_a_mask_that_has_no_chunks_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token sees one key more than its chunk's: prefixes, and no chunks."""
    from mccompile.runtime.prefixes import Prefixes

    own = Prefixes.lengths
    monkeypatch.setattr(Prefixes, "lengths", lambda *at: np.minimum(own(*at) + 1, own(*at).size))
    with pytest.raises(NoChunks):
        compiled(tiny, WINDOW)
