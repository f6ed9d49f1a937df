"""The memory formula against a count of live storages over the real layer sizes, on fake tensors."""

from __future__ import annotations

import weakref
from dataclasses import asdict, replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mccompile.models.magi import (
    MAGI_4_5B,
    MAGI_24B,
    MagiModelConfig,
    MagiSettings,
    MagiTransformer3DModel,
    estimate_memory,
)
from mccompile.models.magi.memory import _layer_bytes


class LiveBytes(TorchDispatchMode):
    """The largest sum of the sizes of storages that exist at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return out


def live_bytes(config: MagiModelConfig, chunks: int, tokens: int, grid: tuple[int, int]) -> int:
    """Peak of one call of a model of two layers, without its weights and inputs."""
    height, width = grid
    model = MagiTransformer3DModel(**asdict(replace(config, num_layers=2))).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not any(part in model._keep_in_fp32_modules for part in name.split(".")):
            parameter.data = parameter.data.bfloat16()
    count = LiveBytes()
    # Views of the weights and inputs are not allocations: they are made known before.
    given = {p.untyped_storage()._cdata for p in model.parameters()}
    count.live = dict.fromkeys(given, 0)
    with count, torch.no_grad():
        model(
            hidden_states=torch.empty(1, config.latent_channels, 6 * chunks, height, width),
            timestep=torch.empty(1, chunks),
            encoder_hidden_states=torch.empty(1, chunks, 128, config.caption_channels),
            encoder_attention_mask=torch.ones(1, chunks, 128, dtype=torch.bool),
            adaln_row=torch.zeros(1, dtype=torch.int64),
            kv_ranges=tuple((max(0, i - 4) * tokens, (i + 1) * tokens) for i in range(chunks)),
            frame_offset=torch.zeros((), dtype=torch.int64),
        )
    return count.peak


@pytest.mark.parametrize(
    ("config", "grid"), [(MAGI_4_5B, (90, 90)), (MAGI_24B, (90, 160))], ids=["4.5B at 720x720", "24B at 720x1280"]
)
def test_a_layer_takes_what_the_formula_says(config: MagiModelConfig, grid: tuple[int, int]) -> None:
    tokens = 6 * (grid[0] // 2) * (grid[1] // 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        measured = live_bytes(config, 5, tokens, grid)
    formula = _layer_bytes(config, 5 * tokens, 5 * tokens, 2)
    assert 0.9 * measured < formula < 1.1 * measured


def test_the_small_model_fits_a_large_card() -> None:
    """The promise: 4.5B at 720x720 under 80 GB with the text encoder and VAE on the host; here with much to spare."""
    for settings in (MagiSettings(), MagiSettings(num_inference_steps=8, distilled=True), MagiSettings(window_size=1)):
        for frames in (96, 240, 2400):
            estimate = estimate_memory(MAGI_4_5B, settings, 720, 720, frames)
            assert estimate.total < 40e9
            parts = (estimate.weights, estimate.clean_chunks, estimate.activations, estimate.latents)
            assert estimate.total == sum(parts)
            assert estimate.offloaded == 0
    kept = estimate_memory(MAGI_4_5B, MagiSettings(), 720, 720, 240, offload=False)
    assert 20e9 < kept.offloaded < 21e9
    assert kept.total < 80e9


def test_memory_does_not_grow_with_the_length_of_the_video() -> None:
    lengths = [estimate_memory(MAGI_4_5B, MagiSettings(), 720, 720, n) for n in (240, 2400)]
    assert lengths[0].clean_chunks == lengths[1].clean_chunks
    assert lengths[0].activations == lengths[1].activations


def test_every_size_counts() -> None:
    base = estimate_memory(MAGI_4_5B, MagiSettings(), 480, 480, 240)
    assert estimate_memory(MAGI_4_5B, MagiSettings(), 720, 720, 240).activations > 2 * base.activations
    assert estimate_memory(MAGI_24B, MagiSettings(), 480, 480, 240).weights > 5 * base.weights
    assert estimate_memory(MAGI_4_5B, MagiSettings(), 480, 480, 240, element_size=4).weights > 1.9 * base.weights
    everything = replace(MagiSettings(), noise2clean_kvrange=())
    assert estimate_memory(MAGI_4_5B, everything, 480, 480, 480).clean_chunks > 5 * base.clean_chunks
