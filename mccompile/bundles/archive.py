"""The file of a bundle: a zip of stored entries. The manifest holds the SHA-256 of each entry and one of its own."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from mccompile.backend.graph_text import Json
from mccompile.bundles.bundle_errors import AlteredBundle, NewerBundle, UnreadableBundle

FORMAT = 1
MANIFEST, SEAL = "manifest.json", "manifest.sha256"


def write_archive(path: Path, manifest: Mapping[str, Json], entries: Mapping[str, bytes]) -> None:
    """Writes the bundle at `path`, whole or not at all."""
    sums: dict[str, Json] = {name: _digest(data) for name, data in entries.items()}
    text = json.dumps({"format": FORMAT, **manifest, "entries": sums}, indent=1).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        draft = Path(file.name)
        try:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, data in {MANIFEST: text, SEAL: _digest(text).encode(), **entries}.items():
                    archive.writestr(zipfile.ZipInfo(name), data)
        except BaseException:
            draft.unlink()
            raise
    draft.chmod(0o644)
    draft.replace(path)


def read_archive(path: Path) -> tuple[dict[str, Json], dict[str, bytes]]:
    """(manifest, entries), every byte checked.

    Raises UnreadableBundle (MC0811), AlteredBundle (MC0812), NewerBundle (MC0813).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
    except FileNotFoundError:
        raise UnreadableBundle(path, "there is no such file") from None
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UnreadableBundle(path, f"{str(error).lower() or type(error).__name__}; it may be cut off") from error
    if MANIFEST not in found or SEAL not in found:
        raise UnreadableBundle(path, f"it is a zip file without {MANIFEST}")
    text, seal = found.pop(MANIFEST), found.pop(SEAL)
    if _digest(text).encode() != seal:
        raise AlteredBundle(path, MANIFEST, "is not what was written")
    manifest = json.loads(text)
    if manifest["format"] > FORMAT:
        raise NewerBundle(path, manifest["format"], FORMAT)
    sums = manifest["entries"]
    for name in sorted({*sums, *found}):
        if name not in found:
            raise AlteredBundle(path, name, "is missing")
        if sums.get(name) != _digest(found[name]):
            raise AlteredBundle(path, name, "is not what was written" if name in sums else "was added afterwards")
    return manifest, found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
