"""Code is loaded from files and folders of the user alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mccompile.backend import folders
from mccompile.backend.folders import cache_folder, loadable
from mccompile.backend.package_errors import ForeignFile


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_folder_is_made_for_the_user_alone(home: Path) -> None:
    assert cache_folder() == home / "mccompile"
    assert cache_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_what_others_may_change_is_refused(home: Path, mode: int) -> None:
    cache_folder().chmod(mode)
    with pytest.raises(ForeignFile, match="may be changed by others") as caught:
        cache_folder()
    assert caught.value.code == "MC0803"


def test_another_user_s_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cache_folder() / "kernel.so"
    file.write_bytes(b"")
    file.chmod(0o700)
    assert loadable(file) == file
    monkeypatch.setattr(folders.os, "getuid", lambda: 12345)
    with pytest.raises(ForeignFile, match="belongs to user"):
        loadable(file)


def test_a_link_is_refused(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (home / "mccompile").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ForeignFile, match="symbolic link"):
        cache_folder()


def test_a_parent_that_everybody_may_change_is_refused(home: Path) -> None:
    cache_folder()
    home.chmod(0o777)
    with pytest.raises(ForeignFile, match="by everybody"):
        cache_folder()
    home.chmod(0o1777)  # as /tmp: only owners rename what is theirs
    assert cache_folder() == home / "mccompile"
