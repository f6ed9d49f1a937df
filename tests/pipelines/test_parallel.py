"""Models that diffusers has split over processes (`enable_parallelism`): refused before and after a compile."""

from __future__ import annotations

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
