"""The embedded model's own prompts for a calibration: colours, shapes, motions and textures that it was trained on."""

from __future__ import annotations

from mccompile.studio.explore.prompts import EMBEDDED

EMBEDDED_PROMPTS = (
    *EMBEDDED,
    "a yellow circle moving down over a sand texture",
    "a red square moving left over a slate texture",
    "a blue triangle moving right over a sand texture",
    "a green circle moving up over a slate texture",
    "a yellow square moving right over a sand texture",
)
