"""Places for results: looked at before anything is computed, filled whole or not at all, and never at a result's cost.

A file is written beside its place and put there when it is whole, so that a full disk destroys nothing. A result that
cannot be put in its place is saved in another one.
"""

from __future__ import annotations

import itertools
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mccompile.generate.errors import OptionRefused, OutputRefused, OutputSaved

Write = Callable[[Path], object]  # writes a file; raises OSError as the file system does
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Use:
    """A file that a command reads or writes. what: the option that names it, as it was given."""

    what: str
    path: Path


def prepare_place(path: Path) -> None:
    """Makes the folder that `path` is (or, with a suffix, lies in), and writes there. Raises OutputRefused."""
    folder = path.parent if path.suffix else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputRefused(str(path), reason(error)) from None


def check_places(writes: Sequence[Use], reads: Sequence[Use] = ()) -> None:
    """Makes the folders of all files that will be written, and tries them.

    Raises OutputRefused (MC0707) for a folder in a file's place, or a folder that nothing can be written to, and
    OptionRefused (MC0705) where two results, or a result and what it is made of, are one file.
    """
    known = {use.path.resolve(): use for use in reads}
    for use in writes:
        before = known.setdefault(use.path.resolve(), use)
        if before is not use:
            raise OptionRefused(use.what, f"it is also the file of `{before.what}`", "give each a file of its own")
    for use in writes:
        if use.path.is_dir():
            raise OutputRefused(str(use.path), "is a directory")
    for folder in dict.fromkeys(use.path.parent for use in writes):
        prepare_place(folder / "_.x")


def put(path: Path, write: Write) -> None:
    """Writes a file whole, or leaves what is at its place. Raises OSError as the file system does."""
    target = path.resolve()
    if target.exists() and not target.is_file():  # a device or a pipe: there is nothing to keep
        write(target)
        return
    draft = target.with_name(f".{target.stem[:80]}-{os.getpid()}-{next(_numbers)}{target.suffix}")
    try:
        write(draft)
        if target.exists():
            draft.chmod(stat.S_IMODE(target.stat().st_mode))
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


@dataclass(slots=True)
class Results:
    """The results of one command. said: is told of each file that was written."""

    said: Callable[[str], None]
    _saved: dict[Path, tuple[str, Path]] = field(default_factory=dict)  # by the place: why not there, and where
    _lost: dict[Path, str] = field(default_factory=dict)

    def put(self, path: Path, write: Write) -> None:
        """Writes a file at its place, or else saves it somewhere else; `finish` then raises."""
        try:
            put(path, write)
        except OSError as error:
            self._elsewhere(path, write, reason(error))
        else:
            self.said(f"wrote {path}")

    def _elsewhere(self, path: Path, write: Write, why: str) -> None:
        for base in dict.fromkeys((Path.cwd(), Path(tempfile.gettempdir()), Path.home(), Path("/dev/shm"))):
            try:
                place = Path(tempfile.mkdtemp(prefix="mccompile-", dir=base)) / path.name
                put(place, write)
            except OSError:
                continue
            self._saved[path] = why, place
            return
        self._lost[path] = why

    def finish(self) -> None:
        """Raises OutputRefused (MC0707) for a result that could not be saved, OutputSaved (MC0715) for one that was."""
        if self._lost:
            path, why = next(iter(self._lost.items()))
            raise OutputRefused(str(path), f"{why}; nor could it be saved in any other folder")
        if self._saved:
            why, _ = next(iter(self._saved.values()))
            raise OutputSaved({str(path): str(place) for path, (_, place) in self._saved.items()}, why)


def reason(error: OSError) -> str:
    """The file system's words."""
    return (error.strerror or str(error)).lower()
