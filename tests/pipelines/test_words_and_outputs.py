"""Prompts as words and as embeddings, with a negative one or without, and decoded outputs, under `compute`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping

import diffusers as D
import numpy as np
import pytest
import torch

from mccompile import api
from tests import pipeline_table
from tests.pipeline_table import CASES, OF_THE_RUN
from tests.pipes import hunyuan, wan
from tests.pipes.parts import VIDEO, cogvideox_vae, embeds, hunyuan_vae, wan_vae
from tests.pipes.words import word_parts

Arguments = dict[str, object]
Made = tuple[object, Arguments, list[Arguments]]  # a pipeline, the call that it is compiled for, and other calls
LENGTH = 7  # of texts, padded
GUIDED = {**VIDEO, "num_inference_steps": 2, "guidance_scale": 3.0, "max_sequence_length": LENGTH}
WORDS = {"prompt": "a red ball", "negative_prompt": "dull"}
DECODED = ({"output_type": "np"}, {"output_type": "pil"})


def _wan() -> Made:
    parts = {"transformer": wan._wan(in_channels=16, out_channels=16), "vae": wan_vae(), **word_parts()}
    return ways(wan._pipe(D.WanPipeline, **parts), GUIDED)


def _skyreels() -> Made:
    parts = {"transformer": wan._skyreels(in_channels=16, out_channels=16), "vae": wan_vae(), **word_parts()}
    return ways(wan._pipe(D.SkyReelsV2DiffusionForcingPipeline, **parts), {**GUIDED, **wan._FORCING})


def _cogvideox() -> Made:
    made = hunyuan._cog(D.CogVideoXPipeline, vae=cogvideox_vae())
    made.register_modules(**word_parts())  # type: ignore[attr-defined]
    return ways(made, GUIDED)


def _ltx() -> Made:
    made = hunyuan._ltx(D.LTXPipeline, hunyuan.ltx_vae())
    made.register_modules(**word_parts())  # type: ignore[attr-defined]
    call = {k: v for k, v in hunyuan._ltx_call(1).items() if "prompt" not in k}
    return ways(made, {**call, "num_inference_steps": 2, "max_sequence_length": LENGTH})


def _hunyuan() -> Made:
    """It has two text encoders; its texts are embeddings here. Without a negative one its guidance is off."""
    pipe = hunyuan._hunyuan_pipe(D.HunyuanVideoPipeline, transformer=hunyuan._hunyuan(), vae=hunyuan_vae())
    call = hunyuan._hunyuan_call(1)
    alone = {k: v for k, v in call.items() if not k.startswith("negative")}
    return pipe, call, [call, alone, *({**call, **kind} for kind in DECODED)]


def ways(pipe: object, call: Mapping[str, object]) -> Made:
    """A compile for words; then words and embeddings, with and without negative ones, and decoded outputs."""
    one, other = {"prompt_embeds": embeds(1, length=LENGTH)}, {"negative_prompt_embeds": embeds(1, 9, LENGTH)}
    known = inspect.signature(pipe.__call__).parameters  # type: ignore[operator]
    found: list[Arguments] = []
    for text in (WORDS, {"prompt": "a red ball"}, one, {**one, **other}, {"prompt": "a red ball", **other}):
        masks = (name.replace("embeds", "attention_mask") for name in text if name.endswith("embeds"))
        masked = {name: torch.ones(1, LENGTH).bool() for name in masks if name in known}
        found.append({**call, **text, **masked})
    return pipe, {**call, **WORDS}, [*found, *({**call, **WORDS, **kind} for kind in DECODED)]


def output(pipe: object, call: Arguments) -> np.ndarray:
    made = pipe(**call, generator=torch.Generator().manual_seed(0)).frames  # type: ignore[operator]
    return np.asarray([[np.asarray(frame) for frame in video] for video in made])


SLOW = [(_skyreels, 2), (_cogvideox, 1), (_ltx, 0), (_hunyuan, 0)]


@pytest.mark.parametrize(
    ("make", "refused"), [(_wan, 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_a_call_is_the_pipelines_own(make: Callable[[], Made], refused: int) -> None:
    """refused: how many of the calls diffusers itself does not take."""
    pipe, told, calls = make()
    plain: list[tuple[Arguments, np.ndarray]] = []
    for call in calls:
        with contextlib.suppress(TypeError, ValueError):
            plain.append((call, output(pipe, call)))
    assert len(calls) - len(plain) == refused
    sizes = {k: v for k, v in told.items() if k not in OF_THE_RUN}
    compiled = api.compile(pipe, "compute", backend="eager", call=sizes)
    for call, wanted in plain:
        assert np.array_equal(output(pipe, call), wanted)
    assert {event.action for event in compiled.events} == {"full"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WanAnimatePipeline", "HunyuanVideoFramepackPipeline"])
@pytest.mark.parametrize("prompts", [1, 2])
def test_one_compile_serves_one_and_two_prompts(name: str, prompts: int) -> None:
    """Their graphs hold one number of samples, whatever they are compiled for: each sample is run alone."""
    case = CASES[name]
    pipe = case.make()
    calls = [case.call(n) for n in (1, 2)]
    wanted = [pipeline_table.output(pipe, call) for call in calls]
    sizes = {k: v for k, v in calls[prompts - 1].items() if k not in OF_THE_RUN}
    compiled = api.compile(pipe, "compute", backend="eager", call=sizes)
    assert torch.equal(pipeline_table.output(pipe, calls[0]), wanted[0])
    torch.testing.assert_close(pipeline_table.output(pipe, calls[1]), wanted[1], rtol=1e-4, atol=1e-4)
    assert {event.sample for event in compiled.events} == {0, 1}
