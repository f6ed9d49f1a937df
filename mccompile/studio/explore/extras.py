"""Measures that are taken only when they are asked for: LPIPS and dimensions of VBench, of videos in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mccompile.generate.run import Video
from mccompile.generate.video import write_mp4
from mccompile.metrics.perceived import lpips
from mccompile.metrics.vbench_process import vbench

_RATE = 8  # frames per second; no dimension of VBench reads it


@dataclass(frozen=True, slots=True)
class Extras:
    """lpips: whether LPIPS is measured. vbench: the dimensions of VBench that are measured, by name."""

    lpips: bool = False
    vbench: tuple[str, ...] = ()

    def about(self) -> dict[str, object]:
        """What the trials of a study share, for those that are asked for."""
        vbench = {"vbench": list(self.vbench)} if self.vbench else {}
        return {**({"lpips": "measured"} if self.lpips else {}), **vbench}

    def check(self) -> None:
        """Measures a grey video, so that what is missing is told before a model is captured.

        Raises MetricUnavailable (MC0733).
        """
        grey = np.full((9, 64, 64, 3), 0.5, np.float32)
        self.distance([grey], [grey])
        self.dimensions([grey])

    def distance(self, videos: Sequence[Video], references: Sequence[Video]) -> float | None:
        """Mean LPIPS, 0 where equal; None where it is not asked for. Raises MetricUnavailable (MC0733)."""
        if not self.lpips:
            return None
        return float(np.mean([lpips(video, reference) for video, reference in zip(videos, references, strict=True)]))

    def dimensions(self, videos: Sequence[Video]) -> dict[str, float]:
        """The mean of each dimension that is asked for. Raises MetricUnavailable (MC0733)."""
        if not self.vbench:
            return {}
        with tempfile.TemporaryDirectory(prefix="mccompile-videos-") as made:
            paths = [Path(made) / f"{number}.mp4" for number in range(len(videos))]
            for path, video in zip(paths, videos, strict=True):
                write_mp4(path, video, _RATE)
            return vbench(paths, self.vbench)


NO_EXTRAS = Extras()
