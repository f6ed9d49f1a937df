"""Runs command lines in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from mccompile.cli import main


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Shell = Callable[..., Result]


@cache
def _capture() -> Callable[..., object]:
    """Captures the embedded model once for all command lines: its folder is the same each time."""
    from mccompile.generate.compare import capture_for

    once: list[object] = []

    def captured(pipe: object, arguments: object) -> object:
        if not once:
            once.append(capture_for(pipe, arguments))  # type: ignore[arg-type]
        return once[0]

    return captured


@pytest.fixture
def one_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations of the test share one capture of the embedded model."""
    captured = _capture()
    monkeypatch.setattr("mccompile.generate.compare.capture_for", captured)


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
