"""Finds the grammar, the shipped policies, the error pages and the version, in a checkout or in an installed wheel."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

Folder = Literal["grammar", "policies", "errors"]

_PACKAGE = Path(__file__).resolve().parent
_IN_CHECKOUT: dict[Folder, str] = {"grammar": "grammar", "policies": "policies", "errors": "docs/errors"}


def data_folder(folder: Folder) -> Path:
    """The folder of data files; `FileNotFoundError` if the installation lacks it."""
    installed = _PACKAGE / "_data" / folder
    checkout = _PACKAGE.parent / _IN_CHECKOUT[folder]
    for place in (installed, checkout):
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"the data folder `{folder}` is at neither {installed} nor {checkout}: reinstall mccompile"
    )


def own_version() -> str:
    """The version of mccompile, of a checkout too that nothing has installed."""
    try:
        return version("mccompile")
    except PackageNotFoundError:
        return str(tomllib.loads((_PACKAGE.parent / "pyproject.toml").read_text())["project"]["version"])


def shipped_policies() -> tuple[str, ...]:
    """Names of the policies that come with the package, sorted."""
    return tuple(sorted(path.stem for path in data_folder("policies").glob("*.policy")))
