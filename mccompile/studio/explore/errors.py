"""Errors of a search (MC074x)."""

from __future__ import annotations

from mccompile.diagnostics.failure import StatedFailure


class ExploreError(StatedFailure):
    """Base: a code, then place, cause and remedy."""

    code = "MC0700"


class StudyDiffers(ExploreError):
    """A study that was begun with other settings."""

    code = "MC0742"

    def __init__(self, path: str, what: str, then: object, now: object) -> None:
        super().__init__(
            f"the study in `{path}` was begun with another {what}: {then}, now {now}",
            "give the same settings to go on with it, or another --out to begin a new one",
        )


class GoalUnmet(ExploreError):
    """A goal that no trial reached."""

    code = "MC0743"

    def __init__(self, goal: str, nearest: str) -> None:
        super().__init__(
            f"no trial is `{goal}`: {nearest}",
            "ask for less, search longer (--trials), or search other policies (--policies)",
        )


class StudyUnreadable(ExploreError):
    """A study whose database is damaged, or is none."""

    code = "MC0744"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the study `{path}` cannot be read: {why}",
            "restore the file, or give another --out to begin a new study",
        )


class NotCalibrated(ExploreError):
    """A goal behind `--policy auto:` that no stored policy meets."""

    code = "MC0745"

    def __init__(self, goal: str, why: str) -> None:
        super().__init__(
            f"`--policy {goal}` finds no policy: {why}",
            "make a set: `mccompile explore --policies motioncache,teacache --store`, with the model, the size, the "
            "steps and the device of this run",
        )
