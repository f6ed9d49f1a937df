"""Errors of compiled packages (MC080x): a graph that cannot be compiled, a call that a package must not be given."""

from __future__ import annotations

from pathlib import Path

from mccompile.backend.role import Role
from mccompile.diagnostics.failure import StatedFailure


class PackageError(StatedFailure):
    """Base: a code, then place, cause and remedy."""

    code = "MC0800"


class UnfitCall(PackageError):
    """A call with another shape, dtype, device or constant than the package was compiled for."""

    code = "MC0801"

    def __init__(self, role: Role, place: str, want: str, have: str) -> None:
        super().__init__(
            f"{place} of the compiled graph `{role}` must be {want}, but is {have}",
            "generate with sizes that vary as in the recorded calls (frames, height, width), or compile again with "
            "calls of this kind; for several prompts in one call, with batches=True",
        )


class ForeignFile(PackageError):
    """A file or folder that code would be loaded from, and that another user made or may change."""

    code = "MC0803"

    def __init__(self, path: Path, reason: str, remedy: str = "") -> None:
        own = "remove it, or set TORCHINDUCTOR_CACHE_DIR to a folder of your own"
        super().__init__(f"{path} {reason}", f"code is loaded only from files that are yours alone: {remedy or own}")


class NotCompiled(PackageError):
    """A role that neither AOTInductor nor torch.compile could take, or that no call was recorded of."""

    code = "MC0802"

    def __init__(self, role: Role, reason: str) -> None:
        super().__init__(
            f"the graph `{role}` could not be compiled: {reason}",
            "run with backend `eager`, and report the graph (`mccompile explain --stage graph`)",
        )
