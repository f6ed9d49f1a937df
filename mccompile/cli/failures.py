"""Our exceptions as diagnostics on stderr and an exit status; everything else is a bug and keeps its traceback."""

from __future__ import annotations

import sys

from mccompile.language.diagnostics import PolicyError
from mccompile.language.render import render

REFUSED = 1
SETUP_FAILED = 2


def known_failures() -> tuple[type[Exception], ...]:
    """The errors of every phase above the torch line; importing them is cheap once such a phase has run."""
    from mccompile.capture.errors import CaptureError
    from mccompile.generate.errors import GenerateError
    from mccompile.lowering.errors import LoweringError
    from mccompile.lowering.package_errors import PackageError
    from mccompile.models.magi.errors import MagiError
    from mccompile.runtime.bundle_errors import BundleError
    from mccompile.runtime.errors import RunError

    return CaptureError, LoweringError, PackageError, RunError, BundleError, GenerateError, MagiError


def report(error: Exception) -> int:
    """Writes the diagnostic; returns 2 for what the command line named wrongly, 1 for a refusal."""
    if isinstance(error, PolicyError):
        sys.stderr.write(render(error.diagnostics))
        return REFUSED
    sys.stderr.write(f"{str(error).strip()}\n")
    return SETUP_FAILED if getattr(error, "code", "").startswith("MC07") else REFUSED
