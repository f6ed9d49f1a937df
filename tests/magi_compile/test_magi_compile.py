"""A tiny random MAGI-1 under policies: end to end on the CPU, against the stock pipeline and the definition."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mccompile.api as api
from mccompile.capture import flat_inputs
from mccompile.capture.run import run_full
from mccompile.capture.verify import check_rows, random_selection
from mccompile.cli import main
from mccompile.generate import load
from mccompile.lowering.errors import NoWindow
from mccompile.models.magi import MagiPipeline
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.errors import NoIncrement
from mccompile.runtime.increments import Increments
from mccompile.runtime.trace import Event, share_computed
from tests.magi_compile.conftest import CHUNKS, FLOW, POLICY, REFRESHED, Tiny
from tests.magi_compile.oracle import Oracle, Rules

MAGI = POLICY.read_text()
MAGI_TEXT = MAGI[MAGI.index("policy") :]
SMALL = {"warmup": 2, "coarse": 3}
ALWAYS = """policy always {
  phase all { compute }
  chunks { pending: skip  finished: keep }
}
"""


class Heard(nn.Module):
    """Listens to a transformer's calls: keyword arguments, outputs, the pipeline's call and chunks."""

    def __init__(self, pipe: MagiPipeline) -> None:
        super().__init__()
        self.model, self.pipe, self.calls = pipe.transformer, pipe, []
        pipe.transformer = self

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, **call: object) -> object:
        out = self.model(**call)
        self.calls.append((call, out, self.pipe.current_call, self.pipe.current_chunks))
        return out


def heard(tiny: Tiny, steps: int = 16) -> tuple[Tensor, list]:
    """The latents of a run and what its transformer was called with."""
    inside = tiny.pipe.transformer
    listener = Heard(tiny.pipe)
    try:
        return tiny.run(steps=steps), listener.calls
    finally:
        tiny.pipe.transformer = inside


def bare(events: list[Event]) -> list[Event]:
    return [replace(e, request="") for e in events]


def test_the_whole_model_is_captured(distilled: Tiny) -> None:
    captured = distilled.captured.model
    assert captured.refusals == ()
    assert all(kind.partial is not None for kind in captured.kinds)
    assert captured.grid is not None
    assert captured.grid.patch == (1, 2, 2)


def test_a_window_of_chunks_is_the_pipelines_own(distilled: Tiny) -> None:
    with pytest.raises(NoWindow, match=r"an input of each call says which keys `.*` reads"):
        distilled.compile(ALWAYS.replace("chunks {", "cache { window: 2 chunks }\n  chunks {"))


def test_rows_alone_are_rows_of_the_whole_at_other_sizes(distilled: Tiny) -> None:
    """The law of the partial graph at calls that were not probes: one chunk in two halves, no cached keys, a copy."""
    _, calls = heard(distilled)
    captured, sizes = distilled.captured.model, set()
    for call, *_ in calls:
        size = (call["timestep"].shape[1], call["cached_key_values"][0][0].shape[1])
        if size in sizes:
            continue
        sizes.add(size)
        inputs = flat_inputs(captured, {**call, "return_kv_chunks": 0})
        run = run_full(captured, inputs)
        torch.testing.assert_close(run.outputs[0], distilled.pipe.transformer(**call)[0], rtol=0, atol=1e-5)
        index = random_selection(call["hidden_states"][0, 0].numel() // 4, len(sizes), torch.device("cpu"))
        assert check_rows(captured, inputs, run, index).refusals == ()
    assert {(2, 2), (CHUNKS, 2), (CHUNKS, 16)} <= sizes


def test_computing_everything_is_the_stock_pipeline(distilled: Tiny) -> None:
    stock = distilled.run()
    model = distilled.compile("compute")
    torch.testing.assert_close(distilled.run(), stock, rtol=0, atol=1e-5)
    assert share_computed(model.events) == 1
    whole = {e.row for e in model.events if e.why == "structure not captured"}
    assert len(whole) == CHUNKS - 1  # a call of the model itself for each chunk whose clean keys are asked for


def test_exact_runs_a_clean_chunk_once_and_changes_nothing(distilled: Tiny) -> None:
    stock = distilled.run()
    model = distilled.compile("exact")
    torch.testing.assert_close(distilled.run(), stock, rtol=0, atol=1e-5)
    assert Counter(e.chunk for e in model.events if e.why == "finished") == dict.fromkeys(range(CHUNKS - 1), 1)


def test_reusing_never_is_the_stock_pipeline(distilled: Tiny) -> None:
    """Every token selected one by one, its velocity integrated by the increment's own path."""
    stock = distilled.run()
    model = distilled.compile(MAGI_TEXT.replace(*REFRESHED).replace("in 0.001", "in 0.0"), threshold=0.0, **SMALL)
    torch.testing.assert_close(distilled.run(), stock, rtol=0, atol=1e-5)
    assert any(e.phase == "fine" and e.action == "full" for e in model.events)


def test_the_definition_chooses_the_same_tokens(distilled: Tiny) -> None:
    model = distilled.compile(str(POLICY), threshold=0.02, **SMALL)
    model.runner.masks = []
    _, calls = heard(distilled)
    kernel = distilled.pipe.transformer.x_embedder.weight[:, :, 0].double().numpy()  # type: ignore[union-attr]
    oracle = Oracle(Rules(steps=16, warmup=2, coarse=3, threshold=0.02), kernel)
    partial = 0
    for (call, _, moment, chunks), mask in zip(calls, model.runner.masks, strict=True):
        parts = call["hidden_states"][0].double().numpy()
        latents = dict(zip(reversed(chunks), reversed(np.split(parts, len(chunks), 1)), strict=True))
        steps = dict(zip(moment.active_chunks, moment.step_indices, strict=True))
        expected = oracle.call({c: latents[c] for c in steps}, steps)
        for place, chunk in enumerate(chunks):
            if chunk in chunks[:place]:
                assert not (expected[chunk] & ~mask[0, place]).any()
            elif chunk in expected:
                np.testing.assert_array_equal(mask[0, place], expected[chunk], f"call {moment.index}, chunk {chunk}")
                partial += 0 < expected[chunk].mean() < 1
            else:
                assert not mask[0, place].any()  # a clean chunk costs nothing
    assert partial > 5
    assert {e.action for e in model.events} == {"full", "partial", "reuse", "skip"}


def test_increments_are_added_again(distilled: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed tokens move by their velocity; each other token as it did when it was last computed, in every bit."""
    model = distilled.compile(str(POLICY), threshold=0.02, **SMALL)
    own = distilled.pipe.integrate
    kept: dict[int, Tensor] = {}
    places: list[int] = []
    reused = 0

    def checked(latents: Tensor, velocity: Tensor, time: float, next_time: float) -> Tensor:
        nonlocal reused
        call, chunks = distilled.pipe.current_call, distilled.pipe.current_chunks
        places[:] = places[1:] or list(call.active_chunks)
        chunk = places[0]
        after = own(latents, velocity, time, next_time)
        fresh = latents + velocity * float(np.float32(next_time) - np.float32(time))
        mask = torch.as_tensor(model.runner.masks[-1][0, chunks.index(chunk)]).view(1, 1, 2, 2, 4)
        mask = mask.repeat_interleave(2, 3).repeat_interleave(2, 4).expand_as(latents)
        increment = torch.where(mask, fresh - latents, kept.get(chunk, torch.full_like(latents, float("nan"))))
        assert torch.equal(after[mask], fresh[mask])
        assert torch.equal(after[~mask], (latents + increment)[~mask])
        reused += int((~mask).sum())
        kept[chunk] = increment
        if len(places) == 1:
            places.clear()
        return after

    model.runner.masks = []
    monkeypatch.setattr(distilled.pipe, "integrate", checked)
    distilled.run()
    assert reused > 0


def test_kept_keys_are_those_of_the_last_step(distilled: Tiny) -> None:
    """Under `finished: keep` no clean pass is made: later chunks read what the chunk's last step wrote."""
    inside = distilled.pipe.transformer
    distilled.compile(ALWAYS)
    _, calls = heard(distilled)
    last = next(c for c in calls if c[2].finished_chunk == 0)
    asked = next(c for c in calls if c[2].clean_chunk == 0)
    expected = inside(**{**last[0], "return_kv_chunks": 1})[1]
    for (k, v), (own_k, own_v) in zip(expected, asked[1][1], strict=True):
        torch.testing.assert_close(own_k, k, rtol=0, atol=1e-5)
        torch.testing.assert_close(own_v, v, rtol=0, atol=1e-5)


def test_undo_gives_everything_back(distilled: Tiny) -> None:
    stock, own = distilled.run(), distilled.pipe.transformer
    model = distilled.compile(str(POLICY), threshold=0.1, **SMALL)
    assert not torch.equal(distilled.run(), stock)
    assert model.undo() is own
    assert distilled.pipe.transformer is own
    assert inspect.ismethod(distilled.pipe.integrate)
    assert torch.equal(distilled.run(), stock)


def test_one_seed_gives_one_trace_and_one_video(distilled: Tiny) -> None:
    model = distilled.compile(str(POLICY), threshold=0.02, **SMALL)
    first, events = distilled.run(), bare(model.events)
    model.events.clear()
    assert torch.equal(distilled.run(), first)
    assert bare(model.events) == events
    model.events.clear()
    assert not torch.equal(distilled.run(seed=1), first)
    assert len({e.request for e in model.events}) == 1


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, None], ids=["Ctrl-C", "an error", "_interrupt"])
def test_a_run_that_was_broken_off_leaves_nothing(distilled: Tiny, fault: type[BaseException] | None) -> None:
    """Neither its increments and keys, nor its place in the schedule, reach the next run."""
    model = distilled.compile(str(POLICY), threshold=0.02, **SMALL)
    first, events = distilled.run(), bare(model.events)

    def stop(pipe: MagiPipeline, index: int, times: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        if index == 20 and fault is not None:
            raise fault("in the middle")
        pipe._interrupt = index == 20
        return {}

    with contextlib.nullcontext() if fault is None else pytest.raises(fault, match="in the middle"):
        distilled.run(callback_on_step_end=stop)
    model.events.clear()
    assert torch.equal(distilled.run(), first)
    assert bare(model.events) == events


def test_residuals_are_carried_with_their_chunks(distilled: Tiny) -> None:
    """Reuse by residuals (flowcache) saves work, and nothing when nothing is reused."""
    stock = distilled.run()
    model = distilled.compile("flowcache_magi1", warmup=1, threshold=0.1)
    out = distilled.run()
    assert share_computed(model.events) < 0.8
    assert torch.isfinite(out).all()
    assert 0 < float((out - stock).norm() / stock.norm()) < 0.2
    model.undo()
    never = FLOW.read_text().replace(*REFRESHED).replace("in 0.001", "in 0.0")
    distilled.compile(never, threshold=0.0, warmup=1)
    torch.testing.assert_close(distilled.run(), stock, rtol=0, atol=1e-5)


def test_three_passes_are_exact(guided: Tiny) -> None:
    stock = guided.run(steps=8)
    for policy in ("compute", "exact"):
        model: CompiledModel = guided.compile(policy)
        torch.testing.assert_close(guided.run(steps=8), stock, rtol=0, atol=2e-5)
        assert {e.branch for e in model.events} == {"full", "prev", *(f"uncond:{c}" for c in range(CHUNKS))}
        (request,) = model.runner.requests.values()
        assert "uncond:0" not in request.branches  # chunks that are over take no memory
        model.undo()


def test_three_passes_refuse_increments(guided: Tiny) -> None:
    with pytest.raises(NoIncrement, match=r"MC0608.*full, prev, uncond"):
        guided.compile(str(POLICY))
    assert not isinstance(guided.pipe.transformer, CompiledModel)


def test_increments_are_refused_before_anything_is_captured(
    guided: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def capture(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(api, "prepare", capture)
    monkeypatch.setattr(load, "find_folder", lambda name: name)
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: guided.pipe)
    with pytest.raises(NoIncrement, match="full, prev, uncond"):
        api.compile(guided.pipe, str(POLICY))
    for verb in (["explain"], ["diff", "motioncache_magi1"]):
        assert main([*verb, str(POLICY), "--model", "any"]) == 1
        assert "full, prev, uncond" in capsys.readouterr().err


def test_a_transformer_alone_refuses_increments(distilled: Tiny) -> None:
    with pytest.raises(NoIncrement, match=r"MC0608.*transformer alone"):
        api.compile(distilled.pipe.transformer, str(POLICY), captured=distilled.captured, backend="eager")
    model = distilled.compile("compute")
    with pytest.raises(NoIncrement, match=r"MC0608.*no `integrate`"):
        Increments.attach(object(), model.runner, model.clock)


def test_sizes_of_one_are_avoided_without_a_change(distilled: Tiny) -> None:
    """Unseen keys and a chunk in two halves, which a compiled transformer gets, give what the plain call gives."""
    stock, (latents, calls) = distilled.run(), heard(distilled)
    torch.testing.assert_close(latents, stock, rtol=0, atol=1e-5)
    for call, *_ in calls:
        assert call["timestep"].shape[1] > 1
        assert call["cached_key_values"][0][0].shape[1] > 1
