"""A checkout that nothing has installed knows its version: `bench gpu` runs from one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from mccompile import __version__, resources


def test_the_version_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    assert __version__ == version("mccompile")
    monkeypatch.setattr(resources, "version", unknown)
    assert resources.own_version() == __version__
