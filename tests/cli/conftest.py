"""Runs command lines in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mccompile.cli import main


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Shell = Callable[..., Result]


@pytest.fixture(scope="session")
def prepared() -> Callable[..., object]:
    """`api.prepare` that captures the embedded model once: its folder is the same for every command line."""
    from mccompile.api import prepare

    once: list[object] = []

    def first(pipe: object, **_: object) -> object:
        if not once:
            once.append(prepare(pipe))
        return once[0]

    return first


@pytest.fixture
def one_capture(prepared: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Command lines of the test share one capture of the embedded model."""
    monkeypatch.setattr("mccompile.api.prepare", prepared)


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
