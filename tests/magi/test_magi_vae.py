"""The autoencoder in tiles: laws of the tiling against the plain model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mccompile.models.magi import AutoencoderKLMagi
from mccompile.models.magi.tiling import Tiling, decode_tiles, encode_tiles
from tests.magi.tiny import tiny_vae
from tests.magi_fixture import relative

TILING = Tiling(size=32, frames=8, overlap=0.25, spatial_factor=8, temporal_factor=4)


def video(frames: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def test_sizes_and_forms_of_the_results() -> None:
    vae = tiny_vae()
    latent = vae.encode(video(8)).latent_dist.mode()
    assert latent.shape == (1, 16, 2, 4, 4)
    assert torch.equal(vae.encode(video(8), return_dict=False)[0].mode(), latent)
    assert vae.decode(latent).sample.shape == (1, 3, 8, 32, 32)
    assert torch.equal(vae.decode(latent, return_dict=False)[0], vae.video(latent))


def test_one_frame_is_four_alike() -> None:
    vae = tiny_vae()
    image = video(1)
    assert torch.equal(vae.posterior(image).mode(), vae.posterior(image.expand(-1, -1, 4, -1, -1)).mode())


def test_a_video_of_the_stored_grid_needs_no_interpolation() -> None:
    vae = tiny_vae()
    assert vae.encoder._positions((4, 8, 8)) is vae.encoder.pos_embed
    assert vae.encoder._positions((2, 4, 6)).shape == (1, 49, 256)
    doubled = vae.encoder._positions((8, 8, 8))
    assert torch.equal(doubled[:, 0], vae.encoder.pos_embed[:, 0])


def local_encode(x: Tensor) -> Tensor:
    """A code whose value depends on its own pixels only: tiling it must change nothing."""
    return torch.nn.functional.avg_pool3d(x, (4, 8, 8))


def local_decode(z: Tensor) -> Tensor:
    return z.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)


@pytest.mark.parametrize("size", [(8, 32, 32), (16, 72, 88), (12, 40, 24), (4, 24, 96)])
def test_tiles_of_something_local_are_the_whole(size: tuple[int, int, int]) -> None:
    x = video(*size)
    z = encode_tiles(local_encode, x, TILING)
    assert relative(z, local_encode(x)) < 1e-6
    assert relative(decode_tiles(local_decode, z, TILING), local_decode(local_encode(x))) < 1e-6


def test_a_fitting_video_is_one_tile_of_the_middle() -> None:
    """The stride leaves a second, partial tile: only its own quarter is blended."""
    vae = tiny_vae()
    x = video(8, 24, 24)
    assert relative(encode_tiles(vae._moments, x, TILING), vae.encoder(x)) < 1e-6
    z = vae.posterior(x).mode()
    assert relative(decode_tiles(vae.decoder, z, TILING), vae.decoder(z)) < 1e-6


def test_blending_is_linear_over_the_overlap() -> None:
    shade = iter((0.0, 1.0))

    def decode(z: Tensor) -> Tensor:
        return torch.full((1, 3, 8, z.shape[3] * 8, z.shape[4] * 8), next(shade))

    out = decode_tiles(decode, torch.zeros(1, 16, 2, 3, 6), Tiling(32, 8, 0.25, 8, 4))
    row = out[0, 0, 0, 0]
    assert torch.allclose(row[24:32], torch.arange(8) / 8)
    assert row[:24].eq(0).all()
    assert row[32:].eq(1).all()


def test_encoding_blends_against_what_is_blended_already() -> None:
    values = iter(range(9))

    def code(x: Tensor) -> Tensor:
        return torch.full((1, 1, 1, 4, 4), float(next(values)))

    tiling = Tiling(32, 4, 0.5, 8, 4)
    encoded = encode_tiles(code, torch.zeros(1, 3, 4, 48, 48), tiling)
    values = iter(range(9))

    def uncode(z: Tensor) -> Tensor:
        return code(z).repeat_interleave(8, 3).repeat_interleave(8, 4)

    decoded = decode_tiles(uncode, torch.zeros(1, 1, 1, 6, 6), tiling)
    # Where a tile above was itself blended, the two differ.
    assert encoded.shape == (1, 1, 1, 6, 6)
    assert not torch.allclose(encoded, decoded[..., ::8, ::8])


def test_the_model_in_tiles_is_near_the_model() -> None:
    vae = tiny_vae()
    x = video(8, 48, 64)
    plain = vae.posterior(x).mode()
    vae.enable_tiling(size=32, frames=8)
    tiled = vae.posterior(x).mode()
    assert tiled.shape == plain.shape
    assert vae.video(plain).shape == x.shape
    vae.disable_tiling()
    assert torch.equal(vae.posterior(x).mode(), plain)
    assert not torch.equal(tiled, plain)


def test_pieces_in_time_are_independent() -> None:
    vae = tiny_vae()
    vae.enable_tiling(size=64, frames=8)
    x = video(12)
    whole = vae.posterior(x).mode()
    assert torch.equal(whole[:, :, :2], vae.posterior(x[:, :, :8]).mode())
    assert torch.equal(whole[:, :, 2:], vae.posterior(x[:, :, 8:]).mode())
    # A last piece of one latent frame gives all of its four frames.
    assert vae.video(whole).shape[2] == 12


def test_the_released_size() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in AutoencoderKLMagi().parameters()) == 613_755_239


@pytest.mark.parametrize("given", [(30, 8, 0.25), (32, 6, 0.25), (32, 8, 0.2), (32, 8, 1.0)])
def test_tiles_must_be_whole_latents(given: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="multiples"):
        Tiling(*given, 8, 4)
