"""Lets Python's search for cyclic garbage rest during a capture.

A capture makes a million objects that it keeps. Each full search looks at all of them, and at all that torch and
diffusers have imported: at 60 blocks these searches took as long as all passes over the graph together.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, nothing is searched for cycles; after it, searches are on again if they were on before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
