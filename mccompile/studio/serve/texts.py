"""The policies that the page can open, and the folder that it saves them in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mccompile.generate.places import put, reason
from mccompile.language.load import read_policy
from mccompile.resources import data_folder, shipped_policies
from mccompile.studio.serve.checked import NAME, source_of
from mccompile.studio.serve.errors import RequestRefused

SUFFIX = ".policy"
_ELSEWHERE = "start `mccompile serve --folder` with a folder that can be written"


@dataclass(frozen=True, slots=True)
class Texts:
    """folder: where policies are saved. Nothing outside of it is read, but the policies of the package."""

    folder: Path

    def saved(self) -> tuple[str, ...]:
        """Names of the policies in the folder, sorted."""
        found = (path for path in self.folder.glob(f"*{SUFFIX}") if NAME.fullmatch(path.stem))
        return tuple(sorted(path.stem for path in found if path.is_file() and not path.is_symlink()))

    def read(self, name: str, shipped: bool) -> str:
        """The text of a shipped policy, or of one in the folder. Raises RequestRefused (MC0763), PolicyError."""
        if name not in (shipped_policies() if shipped else self.saved()):
            raise RequestRefused(404, f"there is no policy `{name:.80}`", "choose one from the list")
        path = (data_folder("policies") if shipped else self.folder) / f"{name}{SUFFIX}"
        return read_policy(path, path.name).text

    def save(self, name: str, text: str, over: bool) -> Path:
        """Writes a text into the folder, whole or not at all. over: also over another policy.

        Raises RequestRefused (MC0763).
        """
        source = source_of(text, name, self.folder)
        path = self.folder / source.name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise RequestRefused(409, f"`{path.name}` is no regular file", "give the policy another name")
        if path.exists() and not over and path.read_text(encoding="utf-8", errors="replace") != source.text:
            raise RequestRefused(409, f"`{path.name}` is there already", "save it over that one, or under another name")
        try:
            put(path, lambda place: place.write_text(source.text, encoding="utf-8"))
        except OSError as error:
            why = f"`{path.name}` cannot be written: {reason(error)}"
            raise RequestRefused(409, why, _ELSEWHERE) from None
        return path
