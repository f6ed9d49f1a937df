"""The wheel carries all that the package reads, and works where there is no repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.tree import DOCS, ROOT

PROBE = """
import json, pathlib, mccompile
from mccompile import load_policy
from mccompile.resources import data_folder, shipped_policies
from mccompile.models.embedded import EMBEDDED_FOLDER
print(json.dumps({
    "package": str(pathlib.Path(mccompile.__file__).parent),
    "grammar": [p.name for p in data_folder("grammar").iterdir()],
    "policies": {name: load_policy(name).name for name in shipped_policies()},
    "errors": sorted(p.stem for p in data_folder("errors").glob("MC*.md")),
    "pipeline": str(EMBEDDED_FOLDER),
    "parts": sorted(p.name for p in EMBEDDED_FOLDER.iterdir()),
}))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("mccompile-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    target = wheel.parent / "site"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=wheel.parent)
    return target


def test_it_works_without_the_repository(installed: Path) -> None:
    seen = json.loads(run(sys.executable, "-c", PROBE, cwd=installed.parent, PYTHONPATH=str(installed)))
    assert seen["package"] == str(installed / "mccompile")
    assert seen["grammar"] == ["policy.lark"]
    assert seen["policies"] == {p.stem: p.stem for p in sorted((ROOT / "policies").glob("*.policy"))}
    assert seen["errors"] == sorted(p.stem for p in (DOCS / "errors").glob("MC*.md"))
    assert seen["pipeline"].startswith(str(installed))
    assert "model_index.json" in seen["parts"]


def test_the_door_opens(installed: Path) -> None:
    script = next(installed.glob("bin/mccompile"))
    seen = run(sys.executable, script, "check", "motioncache", cwd=installed.parent, PYTHONPATH=str(installed))
    assert "motioncache" in seen


def test_it_carries_every_file_of_the_package_and_no_test(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    here = run("git", "ls-files", "--cached", "mccompile", cwd=ROOT).split()
    assert sorted(name for name in here if (ROOT / name).is_file() and name not in names) == []
    assert [name for name in names if name.startswith(("tests", "docs"))] == []


def test_it_carries_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    (licence,) = (n for n in archive.namelist() if n.endswith("/licenses/LICENSE"))
    assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
