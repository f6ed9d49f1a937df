"""Errors of comparing videos (MC073x)."""

from __future__ import annotations

from mccompile.diagnostics.failure import StatedFailure

LPIPS_REMEDY = (
    "install a torchvision that matches this torch (`pip install 'mccompile[lpips]'`) and have the weights of its "
    "AlexNet in torch's cache; or leave the measure out"
)


class MetricsError(StatedFailure):
    """Base: a code, then place, cause and remedy."""

    code = "MC0700"


class VideoUnreadable(MetricsError):
    """A path that holds no video."""

    code = "MC0731"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"cannot read the video `{path}`: {why}",
            "give a video file, or a folder of png or jpg frames whose names are in the order of the video",
        )


class VideosDiffer(MetricsError):
    """Two videos that cannot be compared frame by frame."""

    code = "MC0732"

    def __init__(self, what: str, first: str, second: str) -> None:
        super().__init__(
            f"the videos differ in {what}: {first} and {second}",
            "compare two videos of one generation: the same frames, size and rate",
        )


class MetricUnavailable(MetricsError):
    """A measure that this installation cannot take."""

    code = "MC0733"

    def __init__(self, measure: str, why: str, remedy: str = LPIPS_REMEDY) -> None:
        super().__init__(f"{measure} cannot be measured here: {why}", remedy)
