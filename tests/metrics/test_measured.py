"""Each measure against a second library, its definition or a video built to have a known value."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from mccompile.metrics import (
    Clip,
    flicker,
    lpips,
    measure,
    measure_clips,
    moving,
    ms_ssim,
    psnr,
    psnr_where,
    read_clip,
    sharpness,
    ssim,
)
from mccompile.metrics.errors import MetricUnavailable, VideosDiffer, VideoUnreadable
from mccompile.metrics.perceived import BETAS, scales_of
from tests.house.tree import DOCS

RNG = np.random.default_rng(0)


def videos(frames: int = 3, height: int = 64, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A smooth moving pattern and a noisy copy, float32 in 0..1."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    one = 0.5 + 0.4 * np.sin(x / 5 + t)[..., None] * np.cos(y / 7)[..., None] * np.array([1.0, 0.7, 0.4])
    return np.clip(one + RNG.normal(0, 0.05, one.shape), 0, 1).astype(np.float32), one.astype(np.float32)


def tensors(*of: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(v).permute(0, 3, 1, 2) for v in of]


def test_psnr_and_ssim_are_those_of_both_libraries() -> None:
    video, reference = videos()
    a, b = tensors(video, reference)
    assert psnr(video, reference) == pytest.approx(float(peak_signal_noise_ratio(a, b, data_range=1.0)), abs=1e-4)
    _, everywhere = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    inside = everywhere[..., 5:-5, 5:-5]  # torchmetrics takes windows over the border too, on a mirrored image
    assert ssim(video, reference) == pytest.approx(float(inside.mean()), abs=1e-4)


def test_ms_ssim_is_its_definition_by_the_other_library() -> None:
    """Contrast of the fine scales times the similarity of the coarsest, each to the power of its weight."""
    video, reference = videos(1, 176, 176)
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    a, b = tensors(video, reference)
    per_channel = np.ones(3)
    for scale, beta in enumerate(BETAS):
        for channel in range(3):
            x, y = (t[0, channel].double().numpy() for t in (a, b))
            found, whole = structural_similarity(x, y, full=True, **options)
            if scale < len(BETAS) - 1:  # contrast alone: the similarity without its factor of means
                mx, my = (gaussian_filter(v, 1.5, truncate=3.5) for v in (x, y))
                means = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
                found = float((whole / means)[5:-5, 5:-5].mean())
            per_channel[channel] *= found**beta
        a, b = (torch.nn.functional.avg_pool2d(t, 2) for t in (a, b))
    assert ms_ssim(video, reference) == pytest.approx(per_channel.mean(), abs=2e-3)


@pytest.mark.parametrize(("side", "scales"), [(10, 0), (11, 1), (21, 1), (22, 2), (64, 3), (98, 3), (99, 4), (176, 5)])
def test_scales_are_those_that_fit(side: int, scales: int) -> None:
    assert scales_of(side, side) == scales
    found = ms_ssim(*videos(1, side, side))
    assert (found is None) == (scales == 0)
    assert found is None or 0.0 < found < 1.0


def test_regions_are_split_by_what_the_reference_moves() -> None:
    """A square moves over black: only the pixels that it enters or leaves move; an error elsewhere is static."""
    reference = np.zeros((3, 16, 16, 3), np.float32)
    for frame in range(3):
        reference[frame, 4:8, frame * 4 : frame * 4 + 4] = 1.0
    moves = moving(reference)
    assert moves[0, 4:8, :8].all()
    assert moves[1, 4:8, :12].all()
    assert moves.sum() == 4 * (8 + 12 + 8)
    video = reference.copy()
    video[:, 12:, :] = 0.1
    assert psnr_where(video, reference, moves) == math.inf
    static = psnr_where(video, reference, ~moves)
    assert static == pytest.approx(-10 * math.log10(0.01 * 3 * 4 * 16 / (~moves).sum()), abs=1e-4)
    assert psnr_where(video, reference, np.zeros_like(moves)) is None


def test_flicker_is_change_that_the_reference_has_not() -> None:
    _, reference = videos(4)
    assert flicker(reference, reference) == 0.0
    assert flicker(reference + np.float32(0.05), reference) == pytest.approx(0.0, abs=1e-4)
    blink = reference + np.float32(0.02) * np.array([0, 1, 0, 1], np.float32)[:, None, None, None]
    assert flicker(blink, reference) == pytest.approx(0.02 * 255, rel=1e-3)
    assert flicker(reference[:1], reference[:1]) == 0.0


def test_a_blurred_video_is_less_sharp() -> None:
    noisy, _ = videos()
    soft = (noisy + np.roll(noisy, 1, 1) + np.roll(noisy, 1, 2) + np.roll(noisy, (1, 1), (1, 2))) / 4
    assert 0.0 < sharpness(soft) < sharpness(noisy) < 1.0


def test_everything_of_a_video_against_itself() -> None:
    _, reference = videos()
    found = measure(reference, reference)
    assert {found.psnr, found.moving} == {math.inf}
    assert found.ssim == pytest.approx(1.0)
    assert found.ms_ssim == pytest.approx(1.0)
    assert (found.flicker, found.worst, found.lpips) == (0.0, 0, None)
    assert found.sharpness == found.reference_sharpness


def test_the_worst_frame_is_found() -> None:
    video, reference = videos(4)
    video[2] = 0.0
    found = measure(video, reference)
    assert found.worst == 2
    assert found.per_frame[2] == pytest.approx(psnr(video[2:3], reference[2:3]))


def test_lpips_says_what_it_lacks() -> None:
    """torchvision does not import beside this torch, or is not there at all; both are told, nothing is guessed."""
    with pytest.raises(MetricUnavailable, match="LPIPS cannot be measured here: ") as caught:
        lpips(*videos())
    assert "pip install 'mccompile[lpips]'" in str(caught.value)


def test_clips_that_do_not_fit_are_refused() -> None:
    _, frames = videos()
    clip = Clip(frames, Fraction(8))
    for other, says in (
        (replace(clip, frames=frames[:2]), "length: 3 frames and 2 frames"),
        (replace(clip, frames=frames[:, :32]), "size: 48x64 and 48x32"),
        (replace(clip, rate=Fraction(24)), "rate: 8 frames per second and 24 frames per second"),
    ):
        with pytest.raises(VideosDiffer, match=says):
            measure_clips(other, clip)
    assert measure_clips(replace(clip, rate=None), clip).psnr == math.inf


PAGES = (
    VideoUnreadable("clips/vanila.mp4", "there is no such file or folder"),
    VideosDiffer("length", "31 frames", "15 frames"),
    MetricUnavailable("LPIPS", "No module named 'torchvision'"),
)


@pytest.mark.parametrize("error", PAGES, ids=lambda error: error.code)
def test_a_page_shows_its_error_as_it_is_printed(error: Exception) -> None:
    assert f"```text\n{error}\n```" in (DOCS / "errors" / f"{error.code}.md").read_text()  # type: ignore[attr-defined]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_text("no image")
    for name, says in (
        ("none.mp4", "no such file"),
        ("text.mp4", "invalid data"),
        ("empty", "it has no frames"),
        ("broken", "no image that can be read"),
    ):
        with pytest.raises(VideoUnreadable, match=says):
            read_clip(tmp_path / name)
