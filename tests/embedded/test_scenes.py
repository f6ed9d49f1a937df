"""The procedural videos are what they say."""

import numpy as np
import pytest

from mccompile.models.embedded.scenes import (
    COLOURS,
    FRAMES,
    MOTIONS,
    SHAPES,
    SIZE,
    TEXTURES,
    describe,
    render,
    sample_scene,
)


@pytest.mark.parametrize("seed", range(20))
def test_shape_stays_in_view_and_background_still(seed: int) -> None:
    """The border never shows the shape, and a pixel that it never touches never changes."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    video = render(scene)
    assert video.shape == (FRAMES, SIZE, SIZE, 3)
    border = np.concatenate([video[:, 0], video[:, -1], video[:, :, 0], video[:, :, -1]], axis=1)
    assert (border == border[0]).all()
    colour = np.asarray(COLOURS[scene.colour], np.float32)
    covered = np.abs(video - colour).max(-1) < 1e-3
    assert covered.sum((1, 2)).min() >= 100
    assert covered.sum((1, 2)).std() < 12


def test_same_seed_same_video() -> None:
    """Data are a function of the seed."""
    first, second = (np.random.default_rng(7) for _ in range(2))
    assert np.array_equal(render(sample_scene(first)), render(sample_scene(second)))


def test_prompt_names_the_scene() -> None:
    """Every attribute is in the words."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene(rng)
        words = describe(scene, rng).split()
        assert {scene.colour, scene.shape, scene.motion, scene.texture} <= set(words)


def test_all_values_are_drawn() -> None:
    """No colour, shape, motion or texture is out of reach."""
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(200)]
    assert {s.colour for s in scenes} == set(COLOURS)
    assert {s.shape for s in scenes} == set(SHAPES)
    assert {s.motion for s in scenes} == set(MOTIONS)
    assert {s.texture for s in scenes} == set(TEXTURES)


def test_textures_are_duller_than_the_judge_looks_for() -> None:
    """Without its shape a scene has no saturated pixel."""
    for tint in TEXTURES.values():
        assert max(tint) - min(tint) < 0.2
