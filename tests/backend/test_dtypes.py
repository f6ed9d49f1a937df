"""Which dtype is fast on this CPU: chosen by times, measured once per machine, and said."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch._inductor import config

from mccompile.backend import dtypes
from mccompile.backend.dtypes import DtypeTimes, dtype_times
from mccompile.cli.options import settle_dtype
from mccompile.generate.placement import Placement


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("mccompile.backend.measured.cache_folder", lambda: tmp_path)
    dtype_times.cache_clear()
    with config.patch(force_disable_caches=False):
        yield tmp_path
    dtype_times.cache_clear()


@pytest.mark.parametrize(
    ("wide", "half", "fast"), [(1.0, 0.5, "bfloat16"), (1.0, 0.9, "float32"), (1.0, 2.0, "float32")]
)
def test_bfloat16_must_be_clearly_faster(wide: float, half: float, fast: str) -> None:
    assert DtypeTimes(wide, half).fast == fast


def test_a_machine_is_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dtype_times()
    assert found.float32 > 0
    assert found.bfloat16 > 0
    dtype_times.cache_clear()
    monkeypatch.setattr(dtypes, "_measure", lambda: pytest.fail("measured again"))
    assert dtype_times() == found
    (path,) = folder.iterdir()
    path.write_text("{}")
    dtype_times.cache_clear()
    monkeypatch.setattr(dtypes, "_measure", lambda: DtypeTimes(2.0, 1.0))
    assert dtype_times() == DtypeTimes(2.0, 1.0)  # a damaged file is measured anew


def test_auto_is_settled_and_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dtypes, "_measure", lambda: DtypeTimes(3.0, 1.0))
    arguments = argparse.Namespace(dtype="auto", device="cpu")
    settle_dtype(arguments)
    assert capsys.readouterr().out == (
        "dtype bfloat16, by measurement: on this CPU bfloat16 is 3.00x as fast as float32\n"
    )
    assert Placement.of(arguments.device, arguments.dtype, False).dtype == "bfloat16"


@pytest.mark.parametrize("given", [None, "float32", "bfloat16"])
def test_what_was_given_stays(given: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.Namespace(dtype=given, device=None)
    settle_dtype(arguments)
    assert arguments.dtype == given
    assert capsys.readouterr().out == ""
