"""Our exceptions as diagnostics on stderr and an exit status; everything else is a bug and keeps its traceback."""

from __future__ import annotations

import sys

from mccompile.diagnostics.diagnostic import PolicyError
from mccompile.diagnostics.failure import Failure
from mccompile.diagnostics.render import render

REFUSED = 1
SETUP_FAILED = 2


def report(error: PolicyError | Failure) -> int:
    """Writes the diagnostic; returns 2 for what the command line named wrongly, 1 for a refusal."""
    if isinstance(error, PolicyError):
        sys.stderr.write(render(error.diagnostics))
        return REFUSED
    sys.stderr.write(f"{str(error).strip()}\n")
    return SETUP_FAILED if error.code.startswith("MC07") else REFUSED
