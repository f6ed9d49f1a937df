"""Procedural videos: one coloured shape in steady motion over a texture that stays still.

Everything the embedded model knows comes from here. A `Scene` is drawn from a seeded generator, `describe` says it in
words, `render` draws it. Lengths are pixels of a 64 x 64 frame, times are frames, colours are RGB in [0, 1].
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 64
FRAMES: Final = 31

COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.12, 0.74, 0.20),
    "blue": (0.14, 0.26, 0.95),
    "yellow": (0.96, 0.86, 0.10),
    "purple": (0.72, 0.14, 0.86),
    "cyan": (0.10, 0.82, 0.90),
}
SHAPES: Final = ("circle", "square", "triangle")
MOTIONS: Final[dict[str, tuple[int, int]]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Direction (x, y) of each motion word; y grows downwards."""

TEXTURES: Final[dict[str, tuple[float, float, float]]] = {
    "slate": (0.36, 0.41, 0.47),
    "sand": (0.55, 0.50, 0.42),
    "moss": (0.37, 0.44, 0.36),
    "grey": (0.43, 0.43, 0.43),
}
VERBS: Final = ("moving", "gliding", "drifting")
PHRASES: Final = (
    "a {colour} {shape} {verb} {motion} over a {texture} texture",
    "a {colour} {shape} {verb} {motion} across {texture}",
    "over a {texture} texture a {colour} {shape} is {verb} {motion}",
)


@dataclass(frozen=True, slots=True)
class Wave:
    """One cosine of a texture: wave vector (radians per pixel), phase, amplitude (brightness)."""

    kx: float
    ky: float
    phase: float
    amplitude: float


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a video shows. `x`, `y` are the shape's centre in the first frame, `speed` is pixels per frame."""

    colour: str
    shape: str
    motion: str
    texture: str
    radius: float
    x: float
    y: float
    speed: float
    waves: tuple[Wave, ...]


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene whose shape stays in view for `FRAMES` frames."""
    motion = str(rng.choice(tuple(MOTIONS)))
    radius, speed = float(rng.uniform(8.5, 11.0)), float(rng.uniform(0.9, 1.1))
    low, high, travel = radius + 1.0, SIZE - 1.0 - radius, speed * (FRAMES - 1)
    across = float(rng.uniform(low, high))
    along = float(rng.uniform(low, high - travel))
    dx, dy = MOTIONS[motion]
    if dx + dy < 0:
        along = SIZE - along
    return Scene(
        colour=str(rng.choice(tuple(COLOURS))),
        shape=str(rng.choice(SHAPES)),
        motion=motion,
        texture=str(rng.choice(tuple(TEXTURES))),
        radius=radius,
        x=along if dx else across,
        y=along if dy else across,
        speed=speed,
        waves=tuple(_sample_wave(rng) for _ in range(3)),
    )


def _sample_wave(rng: np.random.Generator) -> Wave:
    angle, length = rng.uniform(0.0, np.pi), rng.uniform(16.0, 40.0)
    k = 2.0 * np.pi / length
    return Wave(
        kx=float(k * np.cos(angle)),
        ky=float(k * np.sin(angle)),
        phase=float(rng.uniform(0.0, 2.0 * np.pi)),
        amplitude=float(rng.uniform(0.02, 0.05)),
    )


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """One of the phrasings of `scene`."""
    phrase = PHRASES[int(rng.integers(len(PHRASES)))]
    verb = VERBS[int(rng.integers(len(VERBS)))]
    return phrase.format(
        colour=scene.colour, shape=scene.shape, motion=scene.motion, texture=scene.texture, verb=verb
    )


def render(scene: Scene, frames: int = FRAMES) -> NDArray[np.float32]:
    """The video [frames, SIZE, SIZE, 3] in [0, 1]; edges are smoothed over one pixel."""
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    px, py = axis[None, :], axis[:, None]
    light = np.zeros((SIZE, SIZE), np.float32)
    for wave in scene.waves:
        light += wave.amplitude * np.cos(wave.kx * px + wave.ky * py + wave.phase, dtype=np.float32)
    background = np.asarray(TEXTURES[scene.texture], np.float32) + light[..., None]
    dx, dy = MOTIONS[scene.motion]
    steps = scene.speed * np.arange(frames, dtype=np.float32)[:, None, None]
    distance = _distance(scene.shape, px - scene.x - dx * steps, py - scene.y - dy * steps, scene.radius)
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    colour = np.asarray(COLOURS[scene.colour], np.float32)
    return np.clip(background + cover * (colour - background), 0.0, 1.0).astype(np.float32)


def _distance(
    shape: str, x: NDArray[np.float32], y: NDArray[np.float32], radius: float
) -> NDArray[np.float32]:
    """Signed distance to the outline, negative inside (for polygons a lower bound, exact near edges)."""
    match shape:
        case "circle":
            return np.sqrt(x * x + y * y) - np.float32(radius)
        case "square":
            return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.86 * radius)
        case "triangle":
            # Equilateral, point up: three half planes at the distance of the inscribed circle.
            slope_x, slope_y, inner = np.float32(np.sqrt(0.75)), np.float32(0.5), np.float32(0.58 * radius)
            shifted = y - np.float32(0.2 * radius)
            return np.maximum(np.abs(x) * slope_x - shifted * slope_y, shifted) - inner
        case _:
            raise ValueError(f"unknown shape {shape!r}: the shapes are {', '.join(SHAPES)}")
