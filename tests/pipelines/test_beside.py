"""What diffusers may do with a model or a pipeline beside a compile: it works, or it is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from mccompile import api
from mccompile.runtime.errors import ModelChanged, ModelTreated
from tests.pipelines.conftest import Wan, generate, text, wan
from tests.pipes.parts import wan_vae

Treat = Callable[[WanTransformer3DModel], object]
TREATED: dict[str, Treat] = {
    "layerwise casting": lambda m: m.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
    "group offload": lambda m: m.enable_group_offload(
        torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level"
    ),
}


@pytest.fixture(autouse=True)
def _own_back_end() -> Iterator[None]:
    """Diffusers notes a back end for all models, too."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = before


@pytest.mark.parametrize("name", TREATED)
def test_savers_of_memory_that_hook_the_model_are_refused_before_a_compile(name: str) -> None:
    """Their hooks run at modules that a captured graph does not call."""
    pipe = wan()
    TREATED[name](pipe.transformer)
    with pytest.raises(ModelTreated, match=r"MC0613.*hooks|MC0613.*forward of its own"):
        api.prepare(pipe, call=text())


@pytest.mark.parametrize("name", TREATED)
def test_and_after_it(own_wan: Wan, name: str) -> None:
    pipe = own_wan.pipe()
    own_wan.compile(pipe, "compute")
    TREATED[name](own_wan.model)
    with pytest.raises(ModelChanged, match="MC0612"):
        generate(pipe, num_frames=5, num_inference_steps=2)


def test_an_attention_back_end_is_captured_with_the_model() -> None:
    """`native` is torch's own attention, which the graph has; the output is that of the pipeline with it."""
    pipe = wan()
    pipe.transformer.set_attention_backend("native")
    plain = generate(pipe, num_frames=5, num_inference_steps=2)
    compiled = api.compile(pipe, "compute", backend="eager", call=text())
    assert torch.equal(generate(pipe, num_frames=5, num_inference_steps=2), plain)
    compiled.undo()


def test_another_attention_back_end_after_a_compile_is_refused(own_wan: Wan) -> None:
    pipe = own_wan.pipe()
    own_wan.compile(pipe, "compute")
    own_wan.model.set_attention_backend("_native_math")
    with pytest.raises(ModelChanged, match=r"MC0612.*settings.*_attention_backend"):
        generate(pipe, num_frames=5, num_inference_steps=2)


def test_a_vae_in_tiles_decodes_what_the_compiled_model_gives() -> None:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16,
        text_dim=16, freq_dim=32, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    ).eval().requires_grad_(False)  # fmt: skip
    pipe = wan(model=transformer, vae=wan_vae())
    pipe.vae.enable_tiling(16, 16, 8, 8)
    wanted = {"num_frames": 5, "num_inference_steps": 2, "output_type": "pt"}
    plain = generate(pipe, **wanted)
    compiled = api.compile(pipe, "compute", backend="eager", call=text())
    assert torch.equal(generate(pipe, **wanted), plain)
    compiled.undo()
