"""Bundles that were changed by hand: each runs as what it says, or is refused by a code. Never a raw exception.

The digests of a changed bundle are made again, as somebody would who wants it to be read.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mccompile.backend.compiled_roles import CompiledRole, CompiledRoles
from mccompile.backend.graph_text import GraphJson
from mccompile.backend.package_errors import ForeignFile
from mccompile.backend.record import Recorder
from mccompile.bundles.archive import read_archive, write_archive
from mccompile.bundles.bundle import CAPTURED, CONSTANTS, load_bundle, save_bundle
from mccompile.bundles.bundle_errors import AlteredBundle, BundleError
from mccompile.diagnostics.failure import Failure
from mccompile.runtime.blocks import eager
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.engine import Engine
from mccompile.runtime.exercise import exercise
from tests.backend import toy
from tests.backend.conftest import Tiny, transformer

Parts = tuple[dict[str, GraphJson], dict[str, bytes]]
FUZZED = settings(
    max_examples=25, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recorder = Recorder()
    exercise(Engine(tiny.lowered, recorder), tiny.bound, tiny.prepared.calls)
    roles = {k: CompiledRole(r.role, "eager", "", r.tensors) for k, r in recorder.recordings.items()}
    path = tmp_path_factory.mktemp("bundle") / "tiny.mcc"
    save_bundle(path, CompiledModel(tiny.model, tiny.lowered, tiny.bound, eager), CompiledRoles(roles))
    return path


def changed(saved: Path, tmp_path: Path, change: Callable[[Parts], None]) -> Path:
    manifest, entries = copy.deepcopy(read_archive(saved))
    change((manifest, entries))
    path = tmp_path / "changed.mcc"
    write_archive(path, {k: v for k, v in manifest.items() if k not in ("format", "entries")}, entries)
    return path


def places(value: GraphJson, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where the values of a JSON value lie, itself left out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, v in inner for place in ((*at, key), *places(v, (*at, key)))]


ODD = st.sampled_from([None, True, -1, 0, 7, 1e308, "", "x", "__class__", "s0 // 0", "9 ** 9 ** 9", "(" * 150, [], {},
                       [[]], {"node": 99}, {"tuple": None}, 2**70])  # fmt: skip


def mutated(data: st.DataObject, value: GraphJson) -> GraphJson:
    """`value` with one of its parts exchanged, left out or doubled."""
    found = places(value)
    *path, last = data.draw(st.sampled_from(found), label="place")
    owner: GraphJson = value
    for key in path:
        owner = owner[key]  # type: ignore[index, call-overload]
    match data.draw(st.sampled_from(["exchange", "leave out", "double"]), label="how"):
        case "leave out":
            del owner[last]  # type: ignore[union-attr, arg-type]
        case "double" if isinstance(owner, list):
            owner.append(owner[last])  # type: ignore[index]
        case _:
            owner[last] = data.draw(ODD, label="by")  # type: ignore[index, call-overload]
    return value


def runs_or_is_refused(path: Path) -> None:
    with contextlib.suppress(Failure):  # each has a code
        load_bundle(path).attach(transformer())


@FUZZED
@given(data=st.data())
def test_any_manifest_is_read_or_refused(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    def change(parts: Parts) -> None:
        mutated(data, parts[0])

    runs_or_is_refused(changed(saved, tmp_path, change))


@FUZZED
@given(data=st.data())
def test_any_captured_graph_is_read_or_refused(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    def change(parts: Parts) -> None:
        parts[1][CAPTURED] = json.dumps(mutated(data, json.loads(parts[1][CAPTURED]))).encode()

    runs_or_is_refused(changed(saved, tmp_path, change))


@pytest.mark.parametrize("name", [CAPTURED, CONSTANTS])
@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 50_000, b"\xff" * 9, None], ids=str)
def test_a_member_of_another_form_is_refused(saved: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    def change(parts: Parts) -> None:
        parts[1].pop(name) if content is None else parts[1].update({name: content})

    with pytest.raises(BundleError):
        load_bundle(changed(saved, tmp_path, change)).attach(transformer())


def test_text_of_a_graph_is_not_executed(saved: Path, tmp_path: Path) -> None:
    """Seen before: what follows the name of a placeholder became a default value, and was evaluated."""
    flag = tmp_path / "executed"
    code = f"=__import__('pathlib').Path({str(flag)!r}).touch()"

    def change(parts: Parts) -> None:
        data = json.loads(parts[1][CAPTURED])
        holder = next(n for n in data["prelude"]["graph"] if n[0] == "placeholder")
        holder[2] += code
        parts[1][CAPTURED] = json.dumps(data).encode()

    with pytest.raises(AlteredBundle, match="no node"):
        load_bundle(changed(saved, tmp_path, change)).attach(transformer())
    assert not flag.exists()


def native(parts: Parts) -> None:
    """Gives one role a package, which is code."""
    role = parts[0]["roles"][0]  # type: ignore[index, call-overload]
    recording = toy.recording()
    from mccompile.backend.aot import export_role
    from mccompile.backend.records import write_record

    role |= {"form": "package", "package": f"{role['graph']}.pt2", "contract": write_record(export_role(recording)[1])}
    parts[1][role["package"]] = b"code"


def test_packages_are_loaded_only_from_a_file_of_the_user_s_own(saved: Path, tmp_path: Path) -> None:
    path = changed(saved, tmp_path, native)
    assert load_bundle(path).native
    path.chmod(0o666)
    with pytest.raises(ForeignFile, match="--no-native") as caught:
        load_bundle(path)
    assert caught.value.code == "MC0803"
    assert not load_bundle(path, native=False).native  # graphs are data


def test_without_packages_graphs_are_compiled_here(saved: Path, tmp_path: Path, tiny: Tiny) -> None:
    path = changed(saved, tmp_path, native)
    asked: list[str] = []

    def compiler(lowered: object, bound: object) -> object:
        return lambda module, role: asked.append(str(role)) or eager(module, role)

    load_bundle(path, native=False).attach(transformer(), compiler=compiler)  # type: ignore[arg-type]
    assert {"decide", "block0:partial"} <= set(asked)


def test_without_packages_a_bundle_of_another_machine_is_read(saved: Path, tmp_path: Path) -> None:
    def change(parts: Parts) -> None:
        parts[0]["made_for"] |= {"machine": "sparc", "cpu": ["vis3"]}  # type: ignore[operator]

    path = changed(saved, tmp_path, change)
    with pytest.raises(BundleError, match="sparc"):
        load_bundle(path)
    assert load_bundle(path, native=False).made_for.machine == "sparc"


def test_a_bundle_names_no_package_outside_of_it(saved: Path, tmp_path: Path) -> None:
    def change(parts: Parts) -> None:
        native(parts)
        parts[0]["roles"][0]["package"] = "../../evil.pt2"  # type: ignore[index, call-overload]

    with pytest.raises(AlteredBundle, match="evil"):
        load_bundle(changed(saved, tmp_path, change))


def test_reading_a_bundle_imports_nothing_that_it_names(saved: Path, tmp_path: Path) -> None:
    """`antigravity` opens a browser when it is imported."""

    def change(parts: Parts) -> None:
        data = json.loads(parts[1][CAPTURED])
        spec = json.loads(data["specs"][0])
        spec[1]["context"] = json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])
        data["specs"][0] = json.dumps(spec)
        parts[1][CAPTURED] = json.dumps(data).encode()

    with pytest.raises(AlteredBundle, match="no structure"):
        load_bundle(changed(saved, tmp_path, change)).attach(transformer())
    assert "antigravity" not in sys.modules
