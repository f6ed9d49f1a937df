"""Runs command lines in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from mccompile.cli import main
from tests.embedded_once import one_capture as embedded_once


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Shell = Callable[..., Result]


@pytest.fixture
def one_capture() -> Iterator[None]:
    """Command lines of the test share one capture of the embedded model."""
    with embedded_once():
        yield


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """`shell("check", path)`: exit status and what was written."""

    def run(*words: object) -> Result:
        capsys.readouterr()
        try:
            status = main([str(w) for w in words])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run
