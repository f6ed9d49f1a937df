"""Folders that code is loaded from: each belongs to the user, and nobody else may write there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import cache_dir

from mccompile.backend.package_errors import ForeignFile

OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """The project's folder beside Inductor's cache (TORCHINDUCTOR_CACHE_DIR moves both), made for the user alone.

    Raises ForeignFile (MC0803) where another user made it or may change it.
    """
    folder = Path(cache_dir(), "mccompile")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _settled(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    return loadable(folder)


def loadable(path: Path, remedy: str = "") -> Path:
    """The file or folder itself, where code may be loaded from it: it is the user's, and nobody else may change it.

    Raises ForeignFile (MC0803), also for a symbolic link. remedy: what its help says, where that is about no cache.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise ForeignFile(path, "is a symbolic link", remedy)
    if found.st_uid != os.getuid():
        raise ForeignFile(path, f"belongs to user {found.st_uid}, and this process runs as {os.getuid()}", remedy)
    if found.st_mode & OTHERS:
        raise ForeignFile(path, f"may be changed by others (mode {stat.S_IMODE(found.st_mode):o})", remedy)
    return path


def _settled(parent: Path) -> None:
    """Raises ForeignFile where another user could put something else in the place of what lies in `parent`."""
    found = parent.stat()
    if found.st_uid not in (0, os.getuid()):
        raise ForeignFile(parent, f"belongs to user {found.st_uid}, and this process runs as {os.getuid()}")
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise ForeignFile(parent, f"may be changed by everybody (mode {stat.S_IMODE(found.st_mode):o})")
