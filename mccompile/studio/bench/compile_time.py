"""`bench overhead`, second table: the time until the first call, cold and from a bundle, against one vanilla block.

Each row is a separate process with an empty Inductor cache. The clock starts when imports are done and the model
exists. It stops after the first call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mccompile.backend.inductor import Progress
from mccompile.studio.bench.compile_case import Case, SecondsByName
from mccompile.studio.bench.ladder_steps import Conditions, settings
from mccompile.studio.bench.report import Column, Plot, Report, Row
from mccompile.studio.bench.subjects import Subject

POLICY = "motioncache"
BLOCK, WARM = "torch.compile of one block", "its bundle, in a new process"
COLUMNS = (
    Column("name", "what is made ready"), Column("layers", "layers", "d"), Column("graphs", "graphs compiled", ".0f"),
    Column("capture", "capture s", ".2f"), Column("compile", "compile or load s", ".2f"),
    Column("first", "first call s", ".2f"), Column("seconds", "in all s", ".2f"),
    Column("blocks", "of one block", ".2f"),
)  # fmt: skip
PLOT = Plot("layers", "seconds", "layers", "seconds until the first call is done", "name", log_x=True)
MeasureCase = Callable[[Case], SecondsByName]


class CaseFailed(RuntimeError):
    """A process that measured a case ended without a result; the message is the end of what it said."""


def cold(case: Case) -> SecondsByName:
    """The case in a process of its own, its Inductor cache empty. Raises CaseFailed."""
    with tempfile.TemporaryDirectory(prefix="mccompile-cold-") as cache:
        command = [sys.executable, "-W", "ignore", "-m", "mccompile.studio.bench.compile_case", case.json()]
        paths = os.pathsep.join(filter(None, sys.path))
        here = {"TMPDIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache, "PYTHONPATH": paths}  # TMPDIR: compiled headers
        done = subprocess.run(command, env=os.environ | here, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CaseFailed(f"{case.what} of {case.subject.layers} layers: {done.stderr.strip()[-2000:]}")
    found: SecondsByName = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(
    subject: Subject, layers: Sequence[int], under: Conditions, progress: Progress | None, run: MeasureCase = cold
) -> tuple[Row, ...]:
    """One block first, then the whole model at so many layers, each with the start of its bundle where it has one."""
    dtype = str(under.dtype).removeprefix("torch.")
    case = Case("block", subject, POLICY, under.backend, str(under.device), dtype, under.kind)
    begun = time.perf_counter()
    rows: list[dict[str, object]] = []

    def note(name: str, case: Case) -> None:
        count = 1 if case.what == "block" else case.subject.layers
        rows.append({"name": name, "layers": count, **run(case)})
        if progress is not None:
            progress(f"{name}, {count} layers", len(rows), 1 + len(layers) * (1 + bundled), time.perf_counter() - begun)

    bundled = under.backend != "eager"
    note(BLOCK, case)
    with tempfile.TemporaryDirectory(prefix="mccompile-bundle-") as folder:
        for count in layers:
            deep = replace(case, subject=replace(subject, layers=count), bundle=str(Path(folder) / f"{count}.bundle"))
            note(f"{POLICY}, the whole model", replace(deep, what="model"))
            if bundled:
                note(WARM, replace(deep, what="bundle"))
    return tuple(_row(r, rows[0]) for r in rows)


def _row(row: dict[str, object], block: dict[str, object]) -> Row:
    """With its time by that of one block, and what a bundle loads where others compile."""
    seconds, base = row["seconds"], block["seconds"]
    assert isinstance(seconds, float)
    assert isinstance(base, float)
    made = {**row, "blocks": seconds / base}
    if "load" in row:
        made["compile"] = row["load"]
    return made  # type: ignore[return-value]


def report(subject: Subject, layers: Sequence[int], under: Conditions, progress: Progress | None = None) -> Report:
    """The table of `measure`."""
    title = f"Until the first call is done, width {subject.dim}, empty caches, without imports"
    return Report("compile", title, COLUMNS, measure(subject, layers, under, progress), PLOT, settings(subject, under))
