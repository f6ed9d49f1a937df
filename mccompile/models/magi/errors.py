"""What stops MAGI-1: one class per code. A place, a cause and a remedy."""

from __future__ import annotations

from mccompile.diagnostics.failure import PlacedFailure


class MagiError(PlacedFailure):
    """A configuration, checkpoint or call of MAGI-1 that cannot be used."""


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
