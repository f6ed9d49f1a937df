"""The embedded generator: a small SkyReels-V2 that ships with the package as a diffusers pipeline folder.

`SkyReelsV2DiffusionForcingPipeline.from_pretrained(EMBEDDED_FOLDER)` loads it like any SkyReels-V2 folder; `DEFAULTS`
are the settings that it is shown with. How it was made: docs/model-card.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

# diffusers instantiates a folder's own component classes only from modules that are imported already.
from mccompile.models.embedded.codec import BlockCodec

__all__ = ["DEFAULTS", "EMBEDDED_FOLDER", "BlockCodec", "CallSettings"]

EMBEDDED_FOLDER: Final = Path(__file__).parent / "pipeline"


@dataclass(frozen=True, slots=True)
class CallSettings:
    """One call of the pipeline, by the names that diffusers gives its arguments; `seed` feeds the generator."""

    prompt: str
    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    ar_step: int
    guidance_scale: float
    seed: int
    fps: int
    """Frame rate of the written file."""


DEFAULTS: Final = CallSettings(
    prompt="a red circle moving right over a slate texture",
    num_frames=31,
    height=64,
    width=64,
    num_inference_steps=50,
    ar_step=5,
    guidance_scale=3.0,
    seed=0,
    fps=12,
)
