"""The training forward is diffusers' forward."""

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel

from mccompile.models.embedded.build import build_transformer
from mccompile.models.embedded.forward import PromptText, training_forward


@pytest.fixture(scope="module")
def model() -> SkyReelsV2Transformer3DModel:
    """The architecture that ships, with an output that is not zero."""
    torch.set_num_threads(1)
    model = build_transformer().eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.proj_out.weight, std=0.05)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    return model


def inputs(frames: int, height: int, words: tuple[int, ...], length: int) -> tuple[torch.Tensor, ...]:
    """Latents, one timestep per chunk of four frames, and text of which all behind `words` rows is zero."""
    generator = torch.Generator().manual_seed(frames + height)
    batch = len(words)
    latents = torch.randn(batch, 24, frames, height, 8, generator=generator)
    timestep = torch.randint(0, 1000, (batch, frames // 4), generator=generator).repeat_interleave(4, 1).float()
    text = torch.randn(batch, length, 64, generator=generator)
    for row, count in zip(text, words, strict=True):
        row[count:] = 0
    return latents, timestep, text


@pytest.mark.parametrize(("frames", "height", "length"), [(16, 8, 512), (8, 4, 40)])
@torch.no_grad()
def test_equals_diffusers(model: SkyReelsV2Transformer3DModel, frames: int, height: int, length: int) -> None:
    """Two sizes, prompts of different lengths, chunks at different noise levels."""
    latents, timestep, text = inputs(frames, height, (3, 11), length)
    expected = model(latents, timestep, text, enable_diffusion_forcing=True, return_dict=False)[0]
    short = PromptText(text[:, :16], torch.full((2,), float(length - 16)))
    actual = training_forward(model, latents, timestep, short)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_comparison_can_fail(model: SkyReelsV2Transformer3DModel) -> None:
    """A padding count that is wrong, or a chunk at another level, shows."""
    latents, timestep, text = inputs(8, 4, (3, 11), 40)
    expected = model(latents, timestep, text, enable_diffusion_forcing=True, return_dict=False)[0]
    other_padding = training_forward(model, latents, timestep, PromptText(text[:, :16], torch.ones(2)))
    other_level = training_forward(model, latents, timestep.flip(1), PromptText(text[:, :16], torch.full((2,), 24.0)))
    assert (other_padding - expected).abs().max() > 1e-3
    assert (other_level - expected).abs().max() > 1e-3


@torch.no_grad()
def test_later_chunks_are_not_seen(model: SkyReelsV2Transformer3DModel) -> None:
    """Block-causal: what happens in the second chunk leaves the first alone, not the other way round."""
    latents, timestep, text = inputs(8, 4, (5,), 40)
    short = PromptText(text[:, :16], torch.full((1,), 24.0))
    before = training_forward(model, latents, timestep, short)
    changed = latents.clone()
    changed[:, :, 4:] += 1
    after = training_forward(model, changed, timestep, short)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    changed = latents.clone()
    changed[:, :, :4] += 1
    assert not torch.equal(before[:, :, 4:], training_forward(model, changed, timestep, short)[:, :, 4:])
