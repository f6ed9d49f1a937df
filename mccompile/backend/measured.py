"""What is measured once on a machine, and kept beside the packages, so that every process decides alike."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch._inductor import config

from mccompile.backend.folders import cache_folder
from mccompile.backend.isa import cpu_features, cpu_model
from mccompile.backend.records import read_record, write_record

T = TypeVar("T")


def measured_once(
    kind: type[T], name: str, facts: tuple[object, ...], measure: Callable[[], T],
    holds: Callable[[T], bool] = lambda _: True,
) -> T:  # fmt: skip
    """A record that was measured under these facts, or that is measured now and kept.

    name: what its file begins with. holds: whether a record that was read makes sense. Torch's switch
    `force_disable_caches` keeps nothing. Raises ForeignFile (MC0803).
    """
    if config.force_disable_caches:
        return measure()
    path = cache_folder() / f"{name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.json"
    found = _read(kind, path)
    if found is None or not holds(found):
        found = measure()
        _write(path, found)
    return found


def cpu_facts() -> tuple[object, ...]:
    """What times of torch on this CPU depend on, besides what is timed and the number of threads."""
    return torch.__version__, torch.backends.cpu.get_cpu_capability(), cpu_model(), cpu_features()


def _write(path: Path, value: object) -> None:
    """Writes a record whole or not at all: other processes may be at it."""
    draft = path.with_suffix(f".{time.monotonic_ns()}")
    draft.write_text(json.dumps(write_record(value)))
    draft.replace(path)


def _read(kind: type[T], path: Path) -> T | None:
    """A `kind` from a file; None where there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        return read_record(kind, json.loads(path.read_text()))
    except (ValueError, OSError):
        return None
