"""The block codec: an orthonormal projection with the interface of a VAE."""

import numpy as np
import pytest
import torch

from mccompile.models.embedded import EMBEDDED_FOLDER
from mccompile.models.embedded.codec import BlockCodec, from_blocks, to_blocks
from mccompile.models.embedded.scenes import render, sample_scene


@pytest.fixture(scope="module")
def codec() -> BlockCodec:
    """The codec that ships."""
    return BlockCodec.from_pretrained(EMBEDDED_FOLDER / "vae")


def pixels(seed: int, count: int) -> torch.Tensor:
    """Procedural videos as the codec takes them, [B, 3, F, H, W] in [-1, 1]."""
    rng = np.random.default_rng(seed)
    videos = np.stack([render(sample_scene(rng)) for _ in range(count)])
    return torch.from_numpy(videos).permute(0, 4, 1, 2, 3) * 2 - 1


def test_blocks_round_trip() -> None:
    """Cutting and joining is exact."""
    video = torch.randn(2, 3, 4, 16, 24)
    assert torch.equal(from_blocks(to_blocks(video)), video)
    assert to_blocks(video).shape == (2, 2, 2, 3, 384)


def test_basis_is_orthonormal(codec: BlockCodec) -> None:
    """Which is why decoding is the transposed map."""
    gram = codec.basis.double() @ codec.basis.double().T
    assert torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-5)


def test_reconstruction_of_data(codec: BlockCodec) -> None:
    """At least 28 dB on every one of sixteen unseen videos."""
    video = pixels(99, 16)
    error = ((codec(video) - video) / 2).square().mean(dim=(1, 2, 3, 4))
    assert (10 * torch.log10(1 / error)).min() > 28


def test_projection_is_idempotent(codec: BlockCodec) -> None:
    """Latents of a decoded video are its latents, while no pixel is clipped.

    The lone first frame is shown twice, so a decoded first latent frame (of two equal halves) is exempt.
    """
    latents = 0.1 * torch.randn(1, codec.config.z_dim, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    (video,) = codec.decode(latents, return_dict=False)
    assert video.abs().max() < 1
    again = codec.encode(video).latent_dist.mode()
    assert torch.allclose(again[:, :, 1:], latents[:, :, 1:], atol=1e-5)


def test_latents_have_mean_variance_one(codec: BlockCodec) -> None:
    """Normalised as a pipeline does it, latents and noise are of one size."""
    latents = codec.encode(pixels(5, 8)).latent_dist.sample()
    std = torch.tensor(codec.config.latents_std).view(1, -1, 1, 1, 1)
    mean = torch.tensor(codec.config.latents_mean).view(1, -1, 1, 1, 1)
    assert 0.8 < ((latents - mean) / std).square().mean() < 1.25


def test_frame_counts(codec: BlockCodec) -> None:
    """31 frames are 16 latent frames and come back as 31."""
    latents = codec.encode(pixels(0, 1)).latent_dist.mode()
    assert latents.shape == (1, codec.config.z_dim, 16, 8, 8)
    assert codec.decode(latents).sample.shape == (1, 3, 31, 64, 64)


@pytest.mark.parametrize("shape", [(1, 3, 4, 64, 64), (1, 3, 5, 60, 64)])
def test_impossible_sizes_are_refused(codec: BlockCodec, shape: tuple[int, ...]) -> None:
    """The complaint says what would do."""
    with pytest.raises(ValueError, match="odd number of frames and sides that are multiples of 8"):
        codec.encode(torch.zeros(shape))
