"""Shows our exceptions as diagnostics with an exit status. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

import sys

from mccompile.diagnostics.failure import Failure
from mccompile.diagnostics.render import render

REFUSED = 1
SETUP_FAILED = 2


def report(error: Failure) -> int:
    """Writes the diagnostics; returns 2 for what the command line named wrongly, 1 for a refusal."""
    sys.stderr.write(render(error.diagnostics))
    return SETUP_FAILED if any(d.code.startswith("MC07") for d in error.diagnostics) else REFUSED
