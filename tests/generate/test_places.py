"""Results: tried before the work, whole or not at all, and saved elsewhere where their place fails them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mccompile.generate.errors import OptionRefused, OutputRefused, OutputSaved
from mccompile.generate.places import Results, Use, check_places, prepare_place, put


def full(path: Path) -> None:
    """A disk that is full after half of the file."""
    path.write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_there_stays_until_the_new_file_is_whole(tmp_path: Path) -> None:
    good = tmp_path / "video.mp4"
    good.write_text("good")
    good.chmod(0o640)
    with pytest.raises(OSError, match="space"):
        put(good, full)
    assert (good.read_text(), [p.name for p in tmp_path.iterdir()]) == ("good", ["video.mp4"])
    put(good, lambda path: path.write_text("better"))
    assert (good.read_text(), good.stat().st_mode & 0o777) == ("better", 0o640)
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


def test_a_link_and_a_device_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("old")
    (tmp_path / "link").symlink_to("own")
    put(tmp_path / "link", lambda path: path.write_text("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "own").read_text() == "new"
    put(Path("/dev/null"), lambda path: path.write_text("nothing"))
    assert Path("/dev/null").is_char_device()


def test_a_result_without_its_place_is_saved_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    results = Results(said.append)
    place = tmp_path / "full" / "a.mp4"

    def write(path: Path) -> None:
        if path.parent == place.parent:
            full(path)
        path.write_text("video")

    place.parent.mkdir()
    results.put(place, write)
    results.put(tmp_path / "b.txt", write)
    with pytest.raises(OutputSaved, match="no space left on device; it was saved as") as caught:
        results.finish()
    assert said == [f"wrote {tmp_path / 'b.txt'}"]
    (saved,) = tmp_path.glob("mccompile-*/a.mp4")
    assert saved.read_text() == "video"
    assert str(saved) in str(caught.value)
    assert not list(place.parent.iterdir())


def test_nothing_takes_a_result(tmp_path: Path) -> None:
    results = Results(str)
    results.put(tmp_path / "a", full)
    with pytest.raises(OutputRefused, match="nor could it be saved"):
        results.finish()


def test_places_are_tried_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path, tmp_path / "file" / "x.mp4", Path("/proc/none/x.mp4"), Path("/sys/x.mp4")):
        with pytest.raises(OutputRefused):
            check_places([Use("--out", wrong)])
    with pytest.raises(OutputRefused):
        prepare_place(Path("/proc/sys/x.mp4"))
    check_places([Use("--out", tmp_path / "new" / "x.mp4")])
    assert not list((tmp_path / "new").iterdir())


def test_no_two_results_are_one_file(tmp_path: Path) -> None:
    one = Use("--out a", tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for other in (tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path / "link"):
        with pytest.raises(OptionRefused, match="`--trace x` cannot be used here: it is also the file of `--out a`"):
            check_places([one, Use("--trace x", other)])
    with pytest.raises(OptionRefused, match="file of `POLICY`"):
        check_places([one], [Use("POLICY", tmp_path / "a")])
