"""Models that diffusers has split over processes (`enable_parallelism`): refused before and after a compile."""

from __future__ import annotations

import multiprocessing
import queue
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

from mccompile import api
from mccompile.runtime.errors import ModelChanged, ModelTreated
from tests.pipelines.conftest import Wan, generate, text, wan

PROCESSES = 2


def split(model: torch.nn.Module) -> None:
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=PROCESSES))  # type: ignore[operator]


def each(rank: int, place: Path, found: multiprocessing.Queue[tuple[str, object]]) -> None:
    """One of the processes: what diffusers gives, and what is said of the compile."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=place.as_uri(), rank=rank, world_size=PROCESSES)
    whole, parts, before = wan(), wan(), wan()
    compiled = api.compile(before, "compute", backend="eager", call=text())
    split(parts.transformer)
    found.put(("apart", float((generate(whole) - generate(parts)).abs().max())))
    try:
        api.prepare(parts, call=text())
    except ModelTreated as refused:
        found.put(("treated", str(refused)))
    split(before.transformer)
    try:
        generate(before)
    except ModelChanged as refused:
        found.put(("changed", str(refused)))
    compiled.undo()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_that_share_a_model_are_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found: multiprocessing.Queue[tuple[str, object]] = context.Queue()
    running = [context.Process(target=each, args=(rank, tmp_path / "meeting", found)) for rank in range(PROCESSES)]
    for process in running:
        process.start()
    told: list[tuple[str, object]] = []
    try:
        told = [found.get(timeout=300) for _ in range(3 * PROCESSES)]
    except queue.Empty:
        pytest.fail(f"the processes said {told} and no more")
    finally:
        for process in running:
            process.join(60)
            process.terminate()
    said = {what: [value for name, value in told if name == what] for what in ("apart", "treated", "changed")}
    assert all(isinstance(far, float) and far < 1e-4 for far in said["apart"])  # diffusers' own halves give the whole
    assert all("MC0613" in str(words) and "enable_parallelism" in str(words) for words in said["treated"])
    assert all("MC0612" in str(words) and "enable_parallelism" in str(words) for words in said["changed"])
    assert [len(values) for values in said.values()] == [PROCESSES] * 3


def test_a_split_model_is_refused(tiny_wan: Wan) -> None:
    """What `enable_parallelism` notes on a model is enough; the processes are tried in the slow test."""
    pipe = wan()
    pipe.transformer._parallel_config = ContextParallelConfig(ulysses_degree=PROCESSES)
    with pytest.raises(ModelTreated, match=r"MC0613.*enable_parallelism"):
        api.prepare(pipe, call=text())
    later = tiny_wan.pipe()
    tiny_wan.compile(later, "compute")
    tiny_wan.model._parallel_config = pipe.transformer._parallel_config
    try:
        with pytest.raises(ModelChanged, match=r"MC0612.*enable_parallelism"):
            generate(later)
    finally:
        del tiny_wan.model._parallel_config
