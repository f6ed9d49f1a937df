"""AnyFlow-FAR: a pipeline that goes chunk by chunk, and fills the keys of each finished chunk by a pass of its own.

Its transformer has three forwards: a step that reads a cache of keys, the pass that fills it, and all frames at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import pytest
import torch
from torch.utils import _pytree as pytree

from mccompile import api
from mccompile.capture.arguments import copied
from mccompile.capture.errors import ExportError
from mccompile.capture.shallow import hollow
from mccompile.diagnostics.source import Source
from mccompile.generate.compare import last_call
from mccompile.generate.flops import count, prices_of
from mccompile.generate.subjects import PipelineSubject
from mccompile.generate.validate import validate
from mccompile.language.load import load_policy
from mccompile.pipelines.finding import driver_for
from mccompile.pipelines.kinds.by_chunk import FillingClock, fills
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Timeline, steps_in_order
from mccompile.runtime.compiled import CLEAN_PASS
from mccompile.runtime.errors import NoClock
from mccompile.runtime.trace import Event
from tests.model_table import GRID, STEPWISE
from tests.pipeline_table import CASES, OF_THE_RUN, output

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called")  # its own kernel is compiled for GPUs only
CASE = CASES["AnyFlowFARPipeline"]
CHUNKS = (1, 2, 2)


@cache
def made() -> tuple[object, api.Prepared]:
    pipe = CASE.make()
    return pipe, api.prepare(pipe, call={k: v for k, v in CASE.call(1).items() if k not in OF_THE_RUN})


def requests_of(events: Sequence[Event]) -> list[str]:
    """One for each chunk."""
    return list(dict.fromkeys(event.request for event in events))


def test_steps_of_every_chunk_are_decided_and_passes_that_fill_are_computed() -> None:
    pipe, captured = made()
    compiled = api.compile(pipe, Source("test.policy", STEPWISE), backend="eager", captured=captured)  # type: ignore[arg-type]
    one = output(pipe, CASE.call(1))
    events = list(compiled.events)
    told = compiled.summary()
    again = output(pipe, CASE.call(1))
    compiled.undo()
    assert torch.equal(one, again)
    assert not torch.equal(one, output(pipe, CASE.call(1)))
    requests = requests_of(events)
    assert len(requests) == len(CHUNKS)
    assert sum(told.why.values()) == len(events)  # of every chunk
    assert told.steps == len({(e.request, e.row) for e in events})
    again_told = compiled.summary()
    assert (again_told.steps, again_told.computed) == (told.steps, told.computed)  # of the second run alone
    for number, request in enumerate(requests):
        own = [e for e in events if e.request == request and e.sample == 0]
        filled = number < len(CHUNKS) - 1
        assert [e.action for e in own] == ["full", "reuse", "full", "reuse", *(["full"] if filled else [])]
        assert [e.row for e in own] == list(range(len(own)))
        assert {e.why for e in own[4:]} == ({CLEAN_PASS} if filled else set())
        assert {e.tokens for e in own} == {CHUNKS[number] * 16}


def test_what_a_run_costs_is_priced_by_its_steps() -> None:
    """The pass that fills has arguments of its own, and chunks have lengths of their own."""
    pipe, captured = made()
    compiled = api.compile(pipe, "compute", backend="eager", captured=captured)
    with last_call(compiled) as call:
        output(pipe, CASE.call(1))
    compiled.undo()
    assert call["kv_cache_flag"]["num_cached_chunks"] == len(CHUNKS) - 1  # type: ignore[index]
    prices = prices_of(compiled, call)
    chunks = [[e for e in compiled.events if e.request == r and e.row == 1] for r in requests_of(compiled.events)]
    costs = [count(compiled, events, prices) for events in chunks]
    blocks = [sum(block.whole for block in prices.blocks) * frames / CHUNKS[-1] for frames in CHUNKS]
    assert costs[2] - costs[0] == pytest.approx(2 * (blocks[2] - blocks[0]))  # of both guidance branches
    assert costs[1] == costs[2]


def test_a_video_that_is_given_is_filled_before_the_first_step() -> None:
    pipe, captured = made()
    given = torch.randn(1, 3, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    call = {**CASE.call(1), "video_latents": given}
    wanted = output(pipe, call)
    compiled = api.compile(pipe, "compute", backend="eager", captured=captured)
    found = output(pipe, call)
    compiled.undo()
    assert torch.equal(found, wanted)
    assert [e.why for e in compiled.events[:2]] == [CLEAN_PASS] * 2
    assert [e.row for e in compiled.events[2:] if e.sample == 0] == [0, 1, 2, 3]


def all_at_once(chunks: list[int], height: int, step: int = 0) -> dict[str, object]:
    """A call of the third forward, which the pipeline never makes. The first of more than three chunks is compressed.
    """  # fmt: skip
    generator, frames = torch.Generator().manual_seed(step), sum(chunks)
    return {
        "hidden_states": torch.randn(1, frames, 16, height, 12, generator=generator), "chunk_partition": chunks,
        "timestep": torch.full((1, frames), 900.0 - step), "r_timestep": torch.full((1, frames), 100.0),
        "encoder_hidden_states": torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(9)),
        "return_dict": False,
    }  # fmt: skip


def test_all_frames_at_once_are_decided_per_step() -> None:
    pipe, _ = made()
    model = api.own_transformer(pipe)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    captured = api.prepare(model, probe=all_at_once([1, 2, 2], 8), second=all_at_once([1, 2, 2, 3], 12))
    assert captured.model.lists == ("chunk_partition",)
    assert not captured.model.written
    for chunks in ([2, 2], [1, 2, 2, 1]):
        compiled = api.compile(model, Source("test.policy", STEPWISE), captured=captured, clock=clock)  # type: ignore[arg-type]
        for clock.row in range(3):
            call = all_at_once(chunks, 16, clock.row)
            found, wanted = compiled(**call)[0], model(**call)[0]
            assert torch.equal(found, wanted) == (clock.row % 2 == 0)
        assert [event.action for event in compiled.events] == ["full", "reuse", "full"]


def filling(inputs: Mapping[str, object]) -> dict[str, object]:
    """A pass that fills the caches of a recorded call, of its first sample."""
    latent = inputs["hidden_states"]
    assert isinstance(latent, torch.Tensor)
    names = ("full_cache", "compressed_cache")
    keys = {i: {name: inputs[f"kv_cache_{i}_{name}"] for name in names} for i in range(2)}
    return {
        "hidden_states": torch.randn(1, 3, *latent.shape[2:]), "timestep": torch.zeros(1, 3),
        "r_timestep": torch.zeros(1, 3), "encoder_hidden_states": torch.randn(1, 7, 16), "chunk_partition": [1, 2],
        "kv_cache": {i: {k: v[:, :1].clone() for k, v in of.items()} for i, of in keys.items()},  # type: ignore[index]
        "kv_cache_flag": {"num_cached_chunks": 1, "is_cache_step": True},
    }  # fmt: skip


def test_the_pass_that_fills_is_compiled_by_itself_and_writes_what_the_model_writes() -> None:
    pipe, captured = made()
    model = api.own_transformer(pipe)
    one, two = map(filling, captured.calls)
    assert fills(one)
    alone = api.prepare(model, probe=one, second=two)
    clock = Timeline("", Grid(1, (0.0,), (0.0,)), ((ChunkTime(0, "active", 0),),))
    compiled = api.compile(model, "compute", captured=alone, clock=clock, backend="eager")
    ours, theirs = copied(two), copied(two)
    found, wanted = compiled(**ours), model(**theirs)
    for mine, own in zip(pytree.tree_leaves((found, ours)), pytree.tree_leaves((wanted, theirs)), strict=True):
        assert torch.equal(mine, own) if isinstance(own, torch.Tensor) else mine == own
    assert not torch.equal(ours["kv_cache"][0]["full_cache"], two["kv_cache"][0]["full_cache"])  # type: ignore[index]


@pytest.mark.parametrize(
    ("frames", "chunks"), [(17, None), (9, [1, 2]), (1, [1]), (25, [1, 2, 2, 2]), (21, [1, 2, 2, 1])]
)
def test_a_video_of_another_length_gets_its_chunks(frames: int, chunks: list[int] | None) -> None:
    pipe, _ = made()
    found = driver_for(pipe).completed(pipe, {"num_frames": frames})
    assert found.get("chunk_partition") == chunks
    assert sum(chunks or CHUNKS) == (frames - 1) // 4 + 1


def test_a_folder_without_weights_tells_why_it_cannot_be_examined() -> None:
    pipe = CASE.make()
    for module in pipe.transformer.modules():  # type: ignore[attr-defined]
        for name, weight in module.named_parameters(recurse=False):
            module.register_parameter(name, hollow(weight.shape, weight.dtype))
    with pytest.raises(ExportError, match=r"`kv_cache_flag\.num_cached_full_tokens`"):
        api.prepare(pipe, call={k: v for k, v in CASE.call(1).items() if k not in OF_THE_RUN})


def test_small_runs_are_of_sizes_that_no_capture_has_seen() -> None:
    pipe, captured = made()
    runs = driver_for(pipe).small_runs(pipe, {k: v for k, v in CASE.call(1).items() if k not in OF_THE_RUN})
    seen = {tuple(call["hidden_states"].shape[-2:]) for call in captured.calls}  # type: ignore[union-attr]
    for run in runs:
        assert (run["height"] // 8, run["width"] // 8) not in seen  # type: ignore[operator]
        assert torch.isfinite(output(pipe, run)).all()


def test_the_laws_hold_at_sizes_that_no_capture_has_seen() -> None:
    pipe, _ = made()
    subject = PipelineSubject.of(pipe, {k: v for k, v in CASE.call(1).items() if k not in OF_THE_RUN}, 2)
    verdict = validate(subject, load_policy("fixed_interval"), {})
    subject.restore()
    assert verdict.holds, verdict.laws


def test_a_clock_that_hangs_on_nothing_tells_no_step() -> None:
    pipe, _ = made()
    for filling in (True, False):
        with pytest.raises(NoClock):
            FillingClock(pipe).moment("cond", {"kv_cache_flag": {"is_cache_step": filling}})
