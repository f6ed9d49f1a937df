"""What a user has of a pipeline is not lost while something is compiled into it."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import threading
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.configuration_utils import FrozenDict

from mccompile.pipelines.driver import Driver
from mccompile.pipelines.errors import CopyRefused
from mccompile.pipelines.finding import driver_for, drivers
from tests.pipelines.conftest import SIZE, Wan, generate, steps, text


def test_a_saved_pipeline_has_its_own_transformer(tiny_wan: Wan, tmp_path: Path) -> None:
    pipe, model = tiny_wan.pipe(), tiny_wan.model
    own = {name: value for name, value in model.config.items() if not name.startswith("_")}
    model._internal_dict = FrozenDict(own)  # as it was before it was ever saved: saving notes class and version there
    compiled = tiny_wan.compile(pipe)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    loaded = WanTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert all(torch.equal(loaded.state_dict()[n], v) for n, v in tiny_wan.model.state_dict().items())
    assert pipe.transformer is compiled
    assert "_class_name" in model.config
    generate(pipe, num_frames=5, num_inference_steps=2)  # and it is still what was compiled


def test_a_compiled_pipeline_is_not_copied(tiny_wan: Wan) -> None:
    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe)
    for action in (copy.deepcopy, pickle.dumps):
        with pytest.raises(CopyRefused, match="MC0708"):
            action(pipe)
    compiled.undo()
    assert type(pipe) is WanPipeline
    assert isinstance(copy.deepcopy(pipe), WanPipeline)


def test_the_pipeline_looks_as_before(tiny_wan: Wan) -> None:
    pipe = tiny_wan.pipe()
    before = type(pipe).__name__, inspect.signature(pipe.__call__)
    tiny_wan.compile(pipe)
    assert (type(pipe).__name__, inspect.signature(pipe.__call__)) == before
    assert isinstance(pipe, WanPipeline)


def test_undo_in_any_order_leaves_no_stand_in(tiny_wan: Wan) -> None:
    pipe = tiny_wan.pipe()
    first = tiny_wan.compile(pipe)
    second = tiny_wan.compile(pipe, "compute")
    assert second.model is tiny_wan.model
    first.undo()
    assert pipe.transformer is second
    assert second.undo() is tiny_wan.model
    assert pipe.transformer is tiny_wan.model
    assert second.undo() is tiny_wan.model
    assert type(pipe) is WanPipeline


def test_two_pipelines_of_the_same_parts_are_compiled_apart(tiny_wan: Wan) -> None:
    one = tiny_wan.pipe()
    stock = generate(one)
    first = tiny_wan.compile(one)
    wanted = generate(one)
    two = WanPipeline(**one.components)
    two.set_progress_bar_config(disable=True)
    second = tiny_wan.compile(two, "compute")
    assert second.model is tiny_wan.model
    for _ in range(2):
        assert torch.equal(generate(one), wanted)
        torch.testing.assert_close(generate(two), stock)
    first.undo()
    assert two.transformer is second


def test_calls_of_two_threads_run_one_after_the_other(tiny_wan: Wan) -> None:
    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe)
    wanted, found = generate(pipe), []
    compiled.events.clear()
    threads = [threading.Thread(target=lambda: found.append(generate(pipe))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(video, wanted) for video in found)
    assert steps(compiled) == 2 * list(range(8))


class Guider:
    """Treats the model before a call, as guiders of diffusers do that skip layers."""

    def prepare_models(self, model: object) -> None:
        """Nothing here."""


def test_a_model_is_looked_at_where_code_of_others_runs_between_calls(tiny_wan: Wan) -> None:
    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe)
    looks: list[bool] = []
    compiled._state.changed = lambda: looks.append(True)  # type: ignore[method-assign,assignment,func-returns-value]
    short = {"num_frames": 5, "num_inference_steps": 3, "guidance_scale": 3.0}
    generate(pipe, **short)
    assert len(looks) == 1
    generate(pipe, callback_on_step_end=lambda pipe, index, timestep, kept: kept, **short)
    assert len(looks) == 1 + 6, "before each call"
    names = list(inspect.signature(WanPipeline.__call__).parameters)[1:]
    wanted = {**text(), **SIZE, **short, "callback_on_step_end": lambda pipe, index, timestep, kept: kept}
    defaults = {n: p.default for n, p in inspect.signature(WanPipeline.__call__).parameters.items()}
    first = names[: names.index("callback_on_step_end") + 1]
    pipe(*(wanted.get(name, defaults[name]) for name in first))
    assert len(looks) == 1 + 6 + 6, "a callback that is given by its place too"
    pipe.guider = Guider()
    generate(pipe, **short)
    assert len(looks) == 1 + 6 + 6 + 6


def test_each_file_of_kinds_is_a_kind() -> None:
    """A new kind of pipeline is one new file; the last driver takes what is of no kind."""
    names = ["ByChunkDriver", "ForcingDriver", "TiledDriver", "WindowDriver", "StepDriver"]
    assert [type(d).__name__ for d in drivers()] == names
    assert all(isinstance(d, Driver) for d in drivers())


def test_a_pipeline_of_plain_steps_is_of_the_last_kind(tiny_wan: Wan) -> None:
    assert driver_for(tiny_wan.pipe()) is drivers()[-1]
