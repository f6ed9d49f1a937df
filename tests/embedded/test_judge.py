"""The judge against videos whose truth is known."""

import re

import numpy as np
import pytest

from mccompile.models.embedded.judge import judge, named
from mccompile.models.embedded.scenes import COLOURS, FRAMES, MOTIONS, SIZE, describe, render, sample_scene

SCENES = 100


def drawn(seed: int, count: int) -> list[tuple[np.ndarray, str]]:
    """Videos and their prompts."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    return [(render(scene), describe(scene, rng)) for scene in scenes]


def test_truth_is_recognised() -> None:
    """At least 98 % of procedural videos pass their own prompt."""
    verdicts = [judge(video, prompt) for video, prompt in drawn(11, SCENES)]
    right = sum(verdict.colour_right and verdict.motion_right for verdict in verdicts)
    assert right >= 0.98 * SCENES
    assert min(verdict.confidence for verdict in verdicts) > 0.8


def test_truth_survives_moderate_noise() -> None:
    """Noise of a tenth of the range does not hide the shape."""
    rng = np.random.default_rng(3)
    for video, prompt in drawn(12, 12):
        noisy = (video + rng.normal(0.0, 0.1, video.shape)).clip(0.0, 1.0)
        verdict = judge(noisy, prompt)
        assert verdict.colour_right
        assert verdict.motion_right


def test_wrong_words_are_rejected() -> None:
    """Every other colour and every other motion is wrong, and only that."""
    for video, prompt in drawn(13, 6):
        colour, motion = named(prompt)
        for other in set(COLOURS) - {colour}:
            verdict = judge(video, prompt.replace(colour, other))
            assert (verdict.colour_right, verdict.motion_right) == (False, True)
        for other in set(MOTIONS) - {motion}:
            verdict = judge(video, re.sub(rf"\b{motion}\b", other, prompt))
            assert (verdict.colour_right, verdict.motion_right) == (True, False)


def test_time_reversed_is_the_opposite_motion() -> None:
    """A law: reversing time reverses the direction seen."""
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for video, prompt in drawn(14, 8):
        assert judge(video[::-1], prompt).motion_seen == opposite[named(prompt)[1]]


@pytest.mark.parametrize("seed", range(3))
def test_noise_gives_no_verdict(seed: int) -> None:
    """Neither uniform nor grey noise has a colour or a motion."""
    rng = np.random.default_rng(seed)
    prompt = "a red circle moving left over a sand texture"
    shape = (FRAMES, SIZE, SIZE, 3)
    for video in (rng.random(shape), rng.normal(0.5, 0.2, shape).clip(0, 1), np.full(shape, 0.5)):
        verdict = judge(video, prompt)
        assert verdict.colour_seen is None
        assert not verdict.colour_right
        assert not verdict.motion_right


def test_a_shape_at_rest_is_still() -> None:
    """A frozen video has its colour and no motion."""
    video, prompt = drawn(15, 1)[0]
    verdict = judge(np.repeat(video[:1], FRAMES, 0), prompt)
    assert verdict.colour_right
    assert (verdict.motion_seen, verdict.motion_right) == ("still", False)


@pytest.mark.parametrize("prompt", ["a circle moving left", "a red circle", "a red and blue circle moving left"])
def test_unjudgeable_prompts_are_refused(prompt: str) -> None:
    """One colour and one motion, or the judge says what it needs."""
    with pytest.raises(ValueError, match="must name one colour"):
        judge(np.zeros((4, 8, 8, 3)), prompt)


def test_malformed_video_is_refused() -> None:
    """A batch is not a video."""
    with pytest.raises(ValueError, match="frames"):
        judge(np.zeros((1, 4, 8, 8, 3)), "a red circle moving left")
