"""Packages made before are found again under the same key, and under no other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._inductor import config

from mccompile.backend import inductor, package_cache
from mccompile.backend.aot import OPTIONS, export_role
from mccompile.backend.package_cache import find, keep, key_of
from mccompile.backend.record import RoleRecording
from mccompile.backend.role import Role
from tests.backend import toy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(package_cache, "_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def stored(tmp_path: Path, recording: RoleRecording) -> tuple[str, bytes]:
    """A made-up package with the contract of the toy graph."""
    _, contract = export_role(recording)
    package = tmp_path / "made.pt2"
    package.write_bytes(b"a package")
    key = key_of(recording, OPTIONS)
    keep(key, package, contract)
    return key, package.read_bytes()


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    recording = toy.recording()
    key, content = stored(tmp_path, recording)
    found = find(key, tmp_path / "again.pt2")
    assert found == export_role(recording)[1]
    assert (tmp_path / "again.pt2").read_bytes() == content
    assert find("another key", tmp_path / "none.pt2") is None


def test_a_damaged_entry_is_none(folder: Path, tmp_path: Path) -> None:
    key, _ = stored(tmp_path, toy.recording())
    (folder / key / "contract.json").write_text("{")
    assert find(key, tmp_path / "again.pt2") is None


def test_torchs_switch_is_heeded(folder: Path, tmp_path: Path) -> None:
    with config.patch({"force_disable_caches": True}):
        key, _ = stored(tmp_path, toy.recording())
        assert not folder.exists()
    stored(tmp_path, toy.recording())
    with config.patch({"force_disable_caches": True}):
        assert find(key, tmp_path / "again.pt2") is None


def other_graph(recording: RoleRecording) -> None:
    node = next(n for n in recording.module.graph.nodes if n.target is torch.ops.aten.mul.Tensor)
    node.target = torch.ops.aten.sub.Tensor


def other_calls(recording: RoleRecording) -> None:
    recording.calls = recording.calls[:1]


def other_role(recording: RoleRecording) -> None:
    recording.role = Role("decide")


def other_weights(recording: RoleRecording) -> None:
    weight = recording.module.inner.weight
    weight.data = weight.data.t().contiguous().t()


@pytest.mark.parametrize("change", [other_graph, other_calls, other_role, other_weights])
def test_what_a_package_depends_on_is_in_its_key(change: Callable[[RoleRecording], None]) -> None:
    recording = toy.recording()
    before = key_of(recording, OPTIONS)
    assert key_of(toy.recording(), OPTIONS) == before
    changed = copy.deepcopy(recording)
    change(changed)
    assert key_of(changed, OPTIONS) != before
    assert key_of(recording, {**OPTIONS, "max_autotune": True}) != before
    with config.patch({"cpp.simdlen": 256}):
        assert key_of(recording, OPTIONS) != before


def test_nothing_is_compiled_twice(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build takes the package of the first, and says so by progress as ever."""
    made = []

    def compile_program(program: object, path: Path, headers: bool, by_rows: bool) -> None:
        made.append(path)
        path.write_bytes(b"a package")

    monkeypatch.setattr(inductor, "compile_program", compile_program)
    shown = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        build = inductor._Build(tmp_path / place, {"toy": toy.recording()}, lambda *done: shown.append(done[:3]))
        build.run(0)
        assert build.roles["toy"].form == "package"
    assert len(made) == 1
    assert shown == [("observe", 1, 1)] * 2
