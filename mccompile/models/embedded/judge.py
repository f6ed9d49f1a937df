"""An automatic judge of generated videos: is the shape of the prompt's colour, and does it move the prompt's way?

Colour segmentation and a centroid track, numpy only. The judge knows the palette and the four motions of `scenes`, not
the model; it would rather see nothing than guess, and what it does not see counts as wrong.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mccompile.models.embedded.scenes import COLOURS, MOTIONS

MINIMUM_CHROMA: Final = 0.30
"""Largest minus smallest of R, G, B; textures stay below 0.15, palette colours lie above 0.6."""
MINIMUM_AREA: Final = 40.0
MINIMUM_PURITY: Final = 0.6
MAXIMUM_SPREAD: Final = 14.0
MINIMUM_TRAVEL: Final = 8.0
MINIMUM_DOMINANCE: Final = 2.0
MINIMUM_FRAMES_SHARE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge saw, and whether it is what the prompt says.

    `colour_seen` is a palette name or None; `motion_seen` a motion word, "still", or None where no steady track
    exists. `confidence` (0..1) is the share of saturated pixels that have the seen colour, times the share of the
    track's variance that a straight line explains.
    """

    colour_right: bool
    motion_right: bool
    colour_seen: str | None
    motion_seen: str | None
    confidence: float


@dataclass(frozen=True, slots=True)
class _Track:
    """Centroids [n, 2] (x, y) at frames [n], and the share of saturated pixels that have the tracked colour."""

    frames: NDArray[np.float64]
    centroids: NDArray[np.float64]
    purity: float


def judge(video: NDArray[np.floating], prompt: str) -> Verdict:
    """Judge `video` [F, H, W, 3] in [0, 1] against `prompt`.

    Raises ValueError where the video has another form or the prompt does not name exactly one colour and one motion.
    """
    if video.ndim != 4 or video.shape[-1] != 3 or video.shape[0] < 2:
        raise ValueError(f"judge: the video must be [frames >= 2, height, width, 3], got {list(video.shape)}")
    colour, motion = named(prompt)
    seen, track = _find_shape(video.astype(np.float64))
    if seen is None or track is None:
        return Verdict(False, False, None, None, 0.0)
    moved, straightness = _direction(track)
    return Verdict(seen == colour, moved == motion, seen, moved, track.purity * straightness)


def named(prompt: str) -> tuple[str, str]:
    """The colour and the motion that `prompt` names; ValueError unless there is exactly one of each."""
    words = re.findall(r"[a-z]+", prompt.lower())
    colours = [word for word in words if word in COLOURS]
    motions = [word for word in words if word in MOTIONS]
    if len(colours) != 1 or len(motions) != 1:
        raise ValueError(
            f"judge: prompt {prompt!r} must name one colour of {', '.join(COLOURS)} "
            f"and one motion of {', '.join(MOTIONS)}"
        )
    return colours[0], motions[0]


def _find_shape(video: NDArray[np.float64]) -> tuple[str | None, _Track | None]:
    """The palette colour that most saturated pixels have, and its track; None where there is no one compact shape."""
    names = tuple(COLOURS)
    smooth = _blurred(video)
    saturated = smooth.max(-1) - smooth.min(-1) > MINIMUM_CHROMA
    palette = _chromatic(np.array([COLOURS[name] for name in names]))
    nearest = np.full(saturated.shape, -1)
    nearest[saturated] = (_chromatic(smooth[saturated]) @ palette.T).argmax(-1)
    areas = np.array([(nearest == i).sum((1, 2)) for i in range(len(names))])
    best = int(areas.sum(1).argmax())
    purity = float(areas[best].sum() / max(1, areas.sum()))
    present = areas[best] >= MINIMUM_AREA
    if purity < MINIMUM_PURITY or present.mean() < MINIMUM_FRAMES_SHARE:
        return None, None
    frames = np.flatnonzero(present)
    masks = nearest[frames] == best
    points = [np.argwhere(mask)[:, ::-1].astype(np.float64) for mask in masks]
    if np.median([np.sqrt(p.var(0).sum()) for p in points]) > MAXIMUM_SPREAD:
        return None, None
    centroids = np.array([np.median(p, axis=0) for p in points])
    return names[best], _Track(frames.astype(np.float64), centroids, purity)


def _blurred(video: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each pixel's mean with its neighbours (3 x 3, edges repeated), so that single noisy pixels do not count."""
    rows = np.pad(video, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    tall = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    columns = np.pad(tall, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    return (columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:]) / 9.0


def _chromatic(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Direction of the colour without its grey part, so that light and dark of one hue fall together."""
    plain = rgb - rgb.mean(-1, keepdims=True)
    return plain / np.maximum(np.linalg.norm(plain, axis=-1, keepdims=True), 1e-6)


def _direction(track: _Track) -> tuple[str | None, float]:
    """The motion word of the line through the track and the share of variance that it explains."""
    time = track.frames - track.frames.mean()
    slope = (time[:, None] * (track.centroids - track.centroids.mean(0))).sum(0) / max((time**2).sum(), 1e-9)
    travel = slope * (track.frames[-1] - track.frames[0])
    main = int(np.abs(travel).argmax())
    if abs(travel[main]) < MINIMUM_TRAVEL:
        return "still", 1.0
    along = track.centroids[:, main] - track.centroids[:, main].mean()
    straight = 1.0 - float(((along - slope[main] * time) ** 2).sum() / max((along**2).sum(), 1e-9))
    if abs(travel[main]) < MINIMUM_DOMINANCE * abs(travel[1 - main]) or straight < 0.7:
        return None, max(straight, 0.0)
    sign = int(np.sign(travel[main]))
    step = (sign, 0) if main == 0 else (0, sign)
    return next(word for word, direction in MOTIONS.items() if direction == step), straight
