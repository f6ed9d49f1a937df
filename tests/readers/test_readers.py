"""Every file that the product reads is read as what it says, or refused by a code (tests/readers/fuzz.py)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mccompile.diagnostics.failure import Failure
from mccompile.generate.errors import UnknownModel
from mccompile.generate.load import load_pipeline
from mccompile.generate.placement import Placement
from mccompile.models.embedded import EMBEDDED_FOLDER
from mccompile.runtime.errors import TraceMalformed
from mccompile.runtime.trace import read_jsonl
from mccompile.studio.report.errors import NoRecord
from mccompile.studio.report.reading import read_run
from mccompile.studio.report.record import EVENTS, MASKS, RUN, STORY, THUMBNAILS, VIDEOS, WEIGHTS
from tests.readers.fuzz import CORPUS, READERS, fuzz, put, read

Break = Callable[[Path], object]


@pytest.mark.parametrize("name", READERS)
def test_no_change_makes_a_raw_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what would be kept of a fault
    (tmp_path / "files").mkdir()
    seen, faults = fuzz(name, tmp_path / "files", lambda count: count >= READERS[name].inputs)
    assert [outcome for outcome in seen if outcome.startswith("raw")] == []
    assert not faults
    assert sum(seen.values()) == READERS[name].inputs


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.iterdir()))
def test_no_input_of_the_corpus_makes_a_raw_error(name: str, tmp_path: Path) -> None:
    """What atheris found to reach each part of a reader (guided.py): its first byte says which file is changed."""
    reader = READERS[name]
    reader.make(tmp_path)
    whole = {path: path.read_bytes() for path in reader.files(tmp_path)}
    seen = []
    for kept in sorted((CORPUS / name).iterdir()):
        path = put(reader, tmp_path, kept.read_bytes())
        seen.append((kept.name, read(reader, tmp_path)))
        path.write_bytes(whole[path])
    assert [(kept, outcome) for kept, outcome in seen if outcome.startswith("raw")] == []


def numbers(folder: Path, **changes: object) -> None:
    path = folder / RUN
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def arrays(path: Path, **more: np.ndarray) -> None:
    with np.load(path) as kept:
        found = dict(kept)
    np.savez(path, **{**found, **more})


def bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / VIDEOS, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.npy", bytes(10**7))
    entry = (folder / VIDEOS).read_bytes()
    (folder / VIDEOS).write_bytes(entry.replace((10**7).to_bytes(4, "little"), (2**32 - 2).to_bytes(4, "little")))


WAY = {"name": "a", "policy": "a", "seconds": 1.0, "tokens": 1.0, "flops": 1.0, "steps": [1.0]}
BREAKS: dict[str, Break] = {
    "no file": lambda f: (f / RUN).unlink(),
    "no object": lambda f: (f / RUN).write_text("[]"),
    "deep": lambda f: (f / RUN).write_text("[" * 99_999),
    "no settings": lambda f: numbers(f, about=3),
    "no rate": lambda f: numbers(f, fps=0),
    "no time": lambda f: numbers(f, ways=[{**WAY, "seconds": 0.0}, WAY]),
    "not a number": lambda f: numbers(f, ways=[{**WAY, "tokens": float("nan")}, WAY]),
    "one run, two videos": lambda f: numbers(f, ways=[WAY]),
    "tokens": lambda f: numbers(f, mask_tokens=10**9),
    "no zip": lambda f: (f / VIDEOS).write_bytes(b"PK"),
    "objects": lambda f: arrays(f / VIDEOS, **{"0": np.array([{}], object)}),
    "floats": lambda f: arrays(f / VIDEOS, **{"0": np.zeros((1, 2, 2, 3))}),
    "no frames": lambda f: arrays(f / VIDEOS, **{"0": np.zeros((0, 64, 96, 3), np.uint8)}),
    "sizes": lambda f: arrays(f / VIDEOS, **{"0": np.zeros((1, 2, 2, 3), np.uint8)}),
    "bomb": bomb,
    "mask": lambda f: arrays(f / MASKS, **{"0 cond": np.zeros((1, 12), np.uint8)}),
    "mask's name": lambda f: arrays(f / MASKS, x=np.zeros((1, 12), np.uint8)),
    "event": lambda f: (f / EVENTS).write_text('{"chunk": 1}\n'),
    "weights": lambda f: arrays(f / WEIGHTS, **{"0 cond": np.zeros((1, 12), np.uint8)}),
    "thumbnails": lambda f: arrays(f / THUMBNAILS, **{"0 0": np.zeros((4, 4), np.uint8)}),
    "thumbnails' sizes": lambda f: arrays(
        f / THUMBNAILS, **{f"0 {i}": np.zeros((4, 4 + i, 3), np.uint8) for i in (0, 1)}
    ),
    "thumbnails' steps": lambda f: arrays(f / THUMBNAILS, **{"0 -1": np.zeros((4, 4, 3), np.uint8)}),
    "no story": lambda f: (f / STORY).unlink(),
    "story": lambda f: (f / STORY).write_text("[]"),
    "story's numbers": lambda f: (f / STORY).write_text((f / STORY).read_text().replace("0.02", "NaN")),
    "story's chunks": lambda f: (f / STORY).write_text((f / STORY).read_text().replace('"chunk": 2', '"chunk": -2')),
    "chunks": lambda f: (f / EVENTS).write_text((f / EVENTS).read_text().replace('"chunk": 2', '"chunk": 1000000000')),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_record_that_is_none(name: str, tmp_path: Path) -> None:
    READERS["record"].make(tmp_path)
    BREAKS[name](tmp_path)
    with pytest.raises(NoRecord, match="MC0751"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [(b"\xff", 0), (b"\n", 1), (b"{", 1), (b"[]", 1), (b"[" * 99_999, 1), (b'{"row": 1}', 1)],
)  # fmt: skip
def test_a_trace_that_is_none(text: bytes, line: int, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(text)
    with pytest.raises(TraceMalformed, match=f"line {line}, is no trace" if line else "is no trace"):
        read_jsonl(tmp_path / "t.jsonl")


def folder_of(tmp_path: Path, name: str, text: str) -> Path:
    """The embedded model's folder with one of its files exchanged."""
    for path in EMBEDDED_FOLDER.rglob("*"):
        copy = tmp_path / path.relative_to(EMBEDDED_FOLDER)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            copy.symlink_to(path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model_index.json", "[" * 99_999),
        ("model_index.json", '{"vae": ["mccompile.models.nothing", "X"]}'),
        ("model_index.json", '{"_class_name": "NoSuchPipeline"}'),
        ("transformer/config.json", "{"),
        ("transformer/config.json", '{"_class_name": "SkyReelsV2Transformer3DModel", "num_layers": "x"}'),
        ("transformer/diffusion_pytorch_model.safetensors", "cut"),
        ("scheduler/scheduler_config.json", "{"),
    ],
)
def test_a_model_folder_that_is_none(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel) as caught:
        load_pipeline(folder_of(tmp_path, name, text), Placement.of("cpu", None, False))
    assert isinstance(caught.value, Failure)
