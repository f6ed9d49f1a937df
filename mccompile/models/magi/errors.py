"""What stops MAGI-1: one class per code. A place, a cause and a remedy."""

from __future__ import annotations

from typing import ClassVar


class MagiError(Exception):
    """A configuration, checkpoint or call of MAGI-1 that cannot be used."""

    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, place: str, cause: str, remedy: str) -> None:
        super().__init__(place, cause, remedy)
        self.place = place
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.title}\n  --> {self.place}\n  = {self.cause}\nhelp: {self.remedy}"


class MagiConfigError(MagiError):
    """A configuration with unknown, missing or contradictory fields."""

    code = "MC0721"
    title = "invalid MAGI-1 configuration"


class MagiCheckpointError(MagiError):
    """Files that are missing, unreadable, or whose tensors are not those of the model."""

    code = "MC0722"
    title = "the checkpoint does not fit the model"


class MagiLayoutError(MagiError):
    """A checkpoint of a known layout that this implementation does not run (MAGI-1.1, fp8)."""

    code = "MC0723"
    title = "unsupported checkpoint layout"


class MagiInputError(MagiError, ValueError):
    """An argument of the pipeline that cannot be honoured."""

    code = "MC0724"
    title = "invalid argument"
