"""Errors of reports (MC075x)."""

from __future__ import annotations

from mccompile.diagnostics.failure import StatedFailure


class NoRecord(StatedFailure):
    """A folder that holds no recorded run."""

    code = "MC0751"

    def __init__(self, folder: str, why: str) -> None:
        super().__init__(
            f"`{folder}` holds no recorded run: {why}",
            "record one with `mccompile generate --record DIR`, and give that folder",
        )
