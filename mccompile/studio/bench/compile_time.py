"""`bench overhead`, second table: the time until the first call, cold and from a bundle, against one vanilla block.

Each row is a separate process. Its caches are empty, but for the second start of a bundle, which finds those of the
first: what is measured once on a machine, such as the fastest attention. The clock starts when imports are done and the
model exists. It stops after the first call.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mccompile.backend.inductor import Progress
from mccompile.studio.bench.compile_case import Case, SecondsByName
from mccompile.studio.bench.ladder_steps import Conditions, settings
from mccompile.studio.bench.report import Column, Plot, Report, Row
from mccompile.studio.bench.subjects import Subject

POLICY = "motioncache"
BLOCK = "torch.compile of one block"
FIRST, LATER = "its bundle, in a new process", "again, with the caches of that start"
COLUMNS = (
    Column("name", "what is made ready"), Column("layers", "layers", "d"), Column("graphs", "graphs compiled", ".0f"),
    Column("capture", "capture s", ".2f"), Column("compile", "compile or load s", ".2f"),
    Column("first", "first call s", ".2f"), Column("seconds", "in all s", ".2f"),
    Column("blocks", "of one block", ".2f"),
)  # fmt: skip
PLOT = Plot("layers", "seconds", "layers", "seconds until the first call is done", "name", log_x=True)
MeasureCase = Callable[[Case, str], SecondsByName]


class CaseFailed(RuntimeError):
    """A process that measured a case ended without a result; the message is the end of what it said."""


def alone(case: Case, cache: str) -> SecondsByName:
    """The case in a process of its own. cache: the folder of its caches. Raises CaseFailed."""
    command = [sys.executable, "-W", "ignore", "-m", "mccompile.studio.bench.compile_case", case.json()]
    paths = os.pathsep.join(filter(None, sys.path))
    here = {"TMPDIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache, "PYTHONPATH": paths}  # TMPDIR: compiled headers
    done = subprocess.run(command, env=os.environ | here, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CaseFailed(f"{case.what} of {case.subject.layers} layers: {done.stderr.strip()[-2000:]}")
    found: SecondsByName = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(
    subject: Subject, layers: Sequence[int], under: Conditions, progress: Progress | None, run: MeasureCase = alone
) -> tuple[Row, ...]:
    """One block first, then the whole model at so many layers, each with two starts of its bundle where it has one."""
    dtype = str(under.dtype).removeprefix("torch.")
    case = Case("block", subject, POLICY, under.backend, str(under.device), dtype, under.kind)
    begun = time.perf_counter()
    rows: list[dict[str, object]] = []

    bundled = under.backend != "eager"
    count = 1 + len(layers) * (3 if bundled else 1)

    def note(name: str, case: Case, cache: str) -> None:
        depth = 1 if case.what == "block" else case.subject.layers
        rows.append({"name": name, "layers": depth, **run(case, cache)})
        if progress is not None:
            progress(f"{name}, {depth} layers", len(rows), count, time.perf_counter() - begun)

    with _folders() as new:
        note(BLOCK, case, new())
        for depth in layers:
            bundle = str(Path(new()) / "made.bundle")
            deep = replace(case, subject=replace(subject, layers=depth), bundle=bundle)
            note(f"{POLICY}, the whole model", replace(deep, what="model"), new())
            cache = new()
            for name in (FIRST, LATER) if bundled else ():
                note(name, replace(deep, what="bundle"), cache)
    return tuple(_row(r, rows[0]) for r in rows)


@contextlib.contextmanager
def _folders() -> Iterator[Callable[[], str]]:
    """Makes empty folders, which are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mccompile-bench-") as folder:
        yield lambda: tempfile.mkdtemp(dir=folder)


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
