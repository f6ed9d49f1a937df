"""Models that diffusers has split over processes (`enable_parallelism`): refused before and after a compile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import ContextParallelConfig

from mccompile import api
from mccompile.runtime.errors import ModelChanged, ModelTreated
from tests.pipelines.conftest import Wan, generate, text, wan

PROCESSES = 2


def test_a_split_model_is_refused(tiny_wan: Wan) -> None:
    """What `enable_parallelism` notes on a model is enough."""
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


@pytest.mark.slow  # two processes, each of which imports and compiles
def test_two_processes_that_share_a_model_are_both_refused(tmp_path: Path) -> None:
    """diffusers itself splits the tokens over them, and the split pipeline gives what the whole one gives."""
    command = [sys.executable, "-m", "tests.pipelines.split_run"]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(PROCESSES)
    ]
    try:
        told = [run.communicate(timeout=240)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert told == ["MC0613 MC0612"] * PROCESSES
