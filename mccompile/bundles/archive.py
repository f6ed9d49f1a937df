"""The file of a bundle: a zip of stored entries. The manifest holds the SHA-256 of each entry and one of its own.

The zip's comment is the SHA-256 of all bytes before it, so that no byte of the file can change unseen. The digests find
damage. They do not tell who wrote the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from mccompile.backend.graph_text import GraphJson
from mccompile.bundles.bundle_errors import AlteredBundle, NewerBundle, OlderBundle, UnreadableBundle

FORMAT = 5
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
DIGITS = 64  # of a SHA-256 in hexadecimal: the length of the comment
ENTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]{0,99}")  # plain names: no folders, nothing hidden
MOST = 10_000  # entries


def write_archive(path: Path, manifest: Mapping[str, GraphJson], entries: Mapping[str, bytes]) -> None:
    """Writes the bundle at `path`, whole or not at all."""
    sums: dict[str, GraphJson] = {name: _digest(data) for name, data in entries.items()}
    text = json.dumps({"format": FORMAT, **manifest, "entries": sums}, indent=1).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        draft = Path(file.name)
        try:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, data in {MANIFEST: text, SEAL: _digest(text).encode(), **entries}.items():
                    archive.writestr(zipfile.ZipInfo(name), data)
                archive.comment = b"0" * DIGITS
            file.flush()
            whole = draft.read_bytes()
            file.seek(len(whole) - DIGITS)
            file.write(_digest(whole[:-DIGITS]).encode())
        except BaseException:
            draft.unlink()
            raise
    draft.chmod(0o644)
    draft.replace(path)


def read_archive(path: Path) -> tuple[dict[str, GraphJson], dict[str, bytes]]:
    """(manifest, entries), every byte checked, nothing unpacked that is not stored as it is.

    Raises UnreadableBundle (MC0811), AlteredBundle (MC0812), NewerBundle (MC0813), OlderBundle (MC0817).
    """
    try:
        whole = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist(), len(whole))
            found = {name: archive.read(name) for name in archive.namelist()}
            comment = archive.comment
    except FileNotFoundError:
        raise UnreadableBundle(path, "there is no such file") from None
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise UnreadableBundle(path, f"{str(error).lower() or type(error).__name__}; it may be cut off") from error
    if MANIFEST not in found or SEAL not in found:
        raise UnreadableBundle(path, f"it is a zip file without {MANIFEST}")
    text, seal = found.pop(MANIFEST), found.pop(SEAL)
    if _digest(text).encode() != seal:
        raise AlteredBundle(path, MANIFEST, "is not what was written")
    manifest = read_json(path, MANIFEST, text)
    match manifest:
        case {"format": int(number)} if number > FORMAT:
            raise NewerBundle(path, number, FORMAT)
        case {"format": int(number), "entries": dict()} if number < FORMAT:
            raise OlderBundle(path, number, FORMAT)
        case {"format": int(), "entries": dict(sums)}:
            _compare(path, sums, found)
        case _:
            raise AlteredBundle(path, MANIFEST, "names no format or no entries")
    if comment != _digest(whole[:-DIGITS]).encode():
        raise UnreadableBundle(path, "its bytes are not those that were written")
    assert isinstance(manifest, dict)
    return manifest, found


def read_json(path: Path, entry: str, text: bytes) -> GraphJson:
    """An entry's JSON value. Raises AlteredBundle (MC0812)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AlteredBundle(path, entry, f"is no JSON: {str(error).lower():.100}") from error


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    """Before anything is read: plain names, each once, stored as they are, together no larger than the file."""
    names = [e.filename for e in entries]
    odd = next((n for n in names if ENTRY.fullmatch(n) is None), None)
    if odd is not None:
        raise UnreadableBundle(path, f"it has an entry with the odd name {odd!r:.100}")
    if len(set(names)) < len(names):
        raise UnreadableBundle(path, "it has two entries of one name")
    if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
        raise UnreadableBundle(path, "it has an entry that is compressed, which bundles never are")
    if len(entries) > MOST or sum(e.file_size for e in entries) > size:
        raise UnreadableBundle(path, "its entries are together larger than the file")


def _compare(path: Path, sums: Mapping[str, GraphJson], found: Mapping[str, bytes]) -> None:
    for name in sorted({*sums, *found}):
        if name not in found:
            raise AlteredBundle(path, name, "is missing")
        if sums.get(name) != _digest(found[name]):
            raise AlteredBundle(path, name, "is not what was written" if name in sums else "was added afterwards")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
