"""Pipelines whose linear layers torchao has quantised before they are compiled: they stay what they are."""

from __future__ import annotations

import pytest
import torch

import mccompile
from tests.pipelines.conftest import generate, text, wan

CONFIGS = ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", CONFIGS)
def test_a_quantised_pipeline_gives_its_own_output(config: str) -> None:
    """The model is captured whole, and a policy per token runs on it."""
    quantization = pytest.importorskip("torchao.quantization")
    pipe = wan()
    before = generate(pipe, num_inference_steps=3)
    quantization.quantize_(pipe.transformer, vars(quantization)[config]())
    wanted = generate(pipe, num_inference_steps=3)
    assert not torch.equal(wanted, before)
    compiled = mccompile.compile(pipe, "compute", backend="eager", call=text())
    assert torch.equal(generate(pipe, num_inference_steps=3), wanted)
    assert not compiled.captured.opaque
    made = mccompile.compile(pipe, "top_motion", backend="eager", call=text(), warmup=1)
    generate(pipe, num_inference_steps=3)
    assert "partial" in {event.action for event in made.events}
    made.undo()
    assert torch.equal(generate(pipe, num_inference_steps=3), wanted)
