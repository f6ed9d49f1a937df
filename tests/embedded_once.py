"""One capture of the embedded model for all tests of a process: its folder is the same for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest

from mccompile import api
from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
from mccompile.generate.placement import Placement

_prepare = api.prepare


@cache
def _captured() -> api.Prepared:
    return _prepare(load_pipeline(find_folder(EMBEDDED), Placement.of("cpu", None, False)))


def prepared(pipe: object, *, call: Mapping[str, object] | None = None, **_: object) -> api.Prepared:
    """`api.prepare` of the embedded pipeline on the CPU in float32."""
    return replace(_captured(), call=dict(call or {}))


@contextmanager
def one_capture() -> Iterator[None]:
    """Whatever prepares the embedded pipeline inside takes the one capture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mccompile.api.prepare", prepared)
        yield
