"""Makes the record of a run from the compiled model that has run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mccompile.generate.compare import announce
from mccompile.runtime.compiled import CompiledModel
from mccompile.studio.report.record import Record, Way, masks_of


def record_of(
    model: CompiledModel,
    ways: Sequence[Way],
    videos: tuple[NDArray[np.uint8], ...],
    about: Mapping[str, object],
    fps: int,
) -> Record:
    """The record of the latest run of `model`, which is the last of the ways. videos: uint8 [F, H, W, 3] by way."""
    return Record(
        about=about,
        said=announce(model),
        refusals=tuple(f"{r.site}: {r.reason}" for r in model.runner.lowered.refusals),
        fps=fps,
        ways=tuple(ways),
        videos=videos,
        events=tuple(model.events),
        masks=masks_of(model.events, model.runner.masks or ()),
    )
