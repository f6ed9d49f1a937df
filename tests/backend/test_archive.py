"""The file of a bundle: whole or refused, whatever happens to its bytes."""

from __future__ import annotations

import copy
import hashlib
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mccompile.bundles import archive
from mccompile.bundles.archive import MANIFEST, SEAL, read_archive, write_archive
from mccompile.bundles.bundle_errors import AlteredBundle, BundleError, NewerBundle, OlderBundle, UnreadableBundle

ENTRIES = {"captured.json": b'{"a": 1}', "0.pt2": bytes(range(256)) * 4}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "some" / "motion.mcc"
    write_archive(path, {"policy": "text"}, ENTRIES)
    return path


def rewritten(path: Path, changes: dict[str, bytes | None]) -> Path:
    with zipfile.ZipFile(path) as old:
        data = {n: old.read(n) for n in old.namelist()} | changes
    with zipfile.ZipFile(path, "w") as new:
        for name, content in data.items():
            if content is not None:
                new.writestr(name, content)
    return path


def test_what_is_written_is_read(bundle: Path) -> None:
    manifest, entries = read_archive(bundle)
    assert manifest["policy"] == "text"
    assert entries == ENTRIES
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_a_file_that_was_cut_off_is_refused(bundle: Path, share: float) -> None:
    data = bundle.read_bytes()
    bundle.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableBundle) as caught:
        read_archive(bundle)
    assert caught.value.code == "MC0811"


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableBundle, match="no such file"):
        read_archive(tmp_path / "missing.mcc")
    with pytest.raises(UnreadableBundle):
        read_archive(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a", "b")
    with pytest.raises(UnreadableBundle, match=r"without manifest\.json"):
        read_archive(tmp_path / "other.zip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0.pt2": b"other"}, r"`0\.pt2` in .* is not what was written"),
        ({"0.pt2": None}, r"`0\.pt2` in .* is missing"),
        ({"1.pt2": b"more"}, r"`1\.pt2` in .* was added afterwards"),
        ({MANIFEST: b"{}"}, r"`manifest\.json` in .* is not what was written"),
        ({SEAL: b"0"}, r"`manifest\.json` in .* is not what was written"),
    ],
)
def test_an_altered_part_is_named(bundle: Path, changes: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(AlteredBundle, match=message) as caught:
        read_archive(rewritten(bundle, changes))
    assert caught.value.code == "MC0812"


def test_a_newer_format_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(archive, "FORMAT", archive.FORMAT + 1)
        write_archive(bundle, {}, ENTRIES)
    with pytest.raises(NewerBundle, match=f"format {archive.FORMAT + 1}") as caught:
        read_archive(bundle)
    assert caught.value.code == "MC0813"


@pytest.mark.parametrize("number", [1, 2])
def test_an_older_format_is_called_old(bundle: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whole in itself, with the entries of its time: what is to be done is to compile again."""
    with monkeypatch.context() as older:
        older.setattr(archive, "FORMAT", number)
        write_archive(bundle, {}, ENTRIES)
    with pytest.raises(OlderBundle, match=f"old format {number}, .* format {archive.FORMAT}") as caught:
        read_archive(bundle)
    assert caught.value.code == "MC0817"
    assert "compile the model again" in str(caught.value)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_can_change_unseen(bundle: Path, data: st.DataObject) -> None:
    """A changed byte is an error of ours, wherever it lies: the digest at the end is of all bytes before it."""
    whole = bundle.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255))
    changed = bundle.with_suffix(".changed")
    changed.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
    if changed.read_bytes() == whole:
        return
    with pytest.raises(BundleError):
        read_archive(changed)


def resealed(path: Path, manifest: bytes) -> Path:
    """As `rewritten`, with a manifest of its own and the seal that fits it."""
    return rewritten(path, {MANIFEST: manifest, SEAL: hashlib.sha256(manifest).hexdigest().encode()})


@pytest.mark.parametrize(
    "manifest",
    [b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"format": 2}', b'{"format": "2", "entries": {}}',
     b'{"format": 2, "entries": []}', b'{"format": null, "entries": {}}'],
)  # fmt: skip
def test_a_manifest_of_another_form_is_refused(bundle: Path, manifest: bytes) -> None:
    with pytest.raises(AlteredBundle, match=r"manifest\.json"):
        read_archive(resealed(bundle, manifest))


@pytest.mark.parametrize("name", ["../evil.pt2", "/etc/passwd", "a/b", ".hidden", "x" * 101, "a\\b", "ü"])
def test_odd_names_are_refused(bundle: Path, name: str) -> None:
    with pytest.raises(UnreadableBundle, match="odd name"):
        read_archive(rewritten(bundle, {name: b""}))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.mcc"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(MANIFEST, bytes(10**7))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(UnreadableBundle, match="compressed"):
        read_archive(path)


def test_entries_that_share_bytes_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many entries over the same stored bytes: each is within the file, together they are not."""
    real = zipfile.ZipFile.infolist
    monkeypatch.setattr(
        zipfile.ZipFile, "infolist", lambda self: [*real(self), *(replaced(e, i) for i in range(9) for e in real(self))]
    )
    with pytest.raises(UnreadableBundle, match="larger than the file"):
        read_archive(bundle)


def replaced(entry: zipfile.ZipInfo, number: int) -> zipfile.ZipInfo:
    again = copy.copy(entry)
    again.filename = f"{number}{entry.filename}"
    return again


def test_two_entries_of_one_name_are_refused(bundle: Path) -> None:
    with zipfile.ZipFile(bundle, "a") as more, pytest.warns(UserWarning, match="Duplicate"):
        more.writestr("0.pt2", b"other")
    with pytest.raises(UnreadableBundle, match="two entries"):
        read_archive(bundle)
