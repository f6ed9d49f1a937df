"""Missing CUDA headers are told with their remedy, and found ones are shown to the compilers."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mccompile.backend import cuda_headers, inductor
from mccompile.backend.record import TensorSpec
from tests.backend import toy


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of headers, and no toolkit or wheels beside it."""
    monkeypatch.setattr(cuda_headers.cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(cuda_headers, "WHEELS", "no_such_package")
    monkeypatch.setenv("CPATH", str(tmp_path))
    return tmp_path


def header(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("")


def test_missing_headers_are_told_by_their_packages(places: Path, caplog: pytest.LogCaptureFixture) -> None:
    header(places, "cuda_runtime_api.h")
    with caplog.at_level(logging.WARNING, "mccompile"):
        inductor._find_headers()
    (record,) = caplog.records
    assert "nvidia-cuda-crt, nvidia-cuda-cccl are missing: pip install 'mccompile[cuda]'" in record.getMessage()


def test_headers_of_wheels_are_shown_to_compilers(places: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cuda_runtime_api.h", "crt/host_defines.h", "cccl/nv/target"):
        header(places, name)
    with caplog.at_level(logging.WARNING, "mccompile"):
        inductor._find_headers()
    assert caplog.records == []
    assert os.environ["CPATH"].split(os.pathsep) == [str(places), str(places / "cccl")]


def test_only_graphs_of_a_gpu_need_them() -> None:
    recording = toy.recording()
    assert not inductor._on_gpu(recording)
    spec = TensorSpec((2,), torch.float32, torch.device("cuda", 0), (0,))
    assert inductor._on_gpu(replace(recording, calls=[(spec,)]))
