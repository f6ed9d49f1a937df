"""Kills runs with SIGKILL at random points and resumes them: `make kills`, or `python -m tests.generate.kills 50`.

The embedded model is captured once. Each run and each resumption is a forked process of its own. The child of a
resumption tells the digest of its video, which must be that of a run that nobody killed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from mccompile import api
from mccompile.bundles.identity import environment, identify
from mccompile.generate.compare import capture_for, run_with
from mccompile.generate.journal import FORMAT, Begun, Journal
from mccompile.generate.load import find_folder, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.run import EMBEDDED_SETTINGS, Settings, call_arguments
from tests.house.measured import machine
from tests.house.readme import BENCHMARKS

VIDEO = {"num_inference_steps": 10, "num_frames": 15, "height": 32, "width": 32, "ar_step": 2}
PLACE = BENCHMARKS / "kills.json"
COLUMNS = (
    ("kills", "kills", ","), ("identical", "identical videos", ","), ("begun", "runs that had kept calls", ","),
    ("kept", "calls not computed again", ","), ("most", "most of one run", ","),
)  # fmt: skip
POLICY, VALUES = "top_motion", {"warmup": 2.0}


class Rig:
    """A captured model; every generation of it happens in a child."""

    def __init__(self) -> None:
        self._pipe = load_pipeline(find_folder("embedded"), Placement.of("cpu", None, False))
        self._call = call_arguments(self._pipe, Settings(**(EMBEDDED_SETTINGS.given() | VIDEO)))  # type: ignore[arg-type]
        self._captured = capture_for(self._pipe, self._call)

    def generate(self, folder: Path, resume: bool) -> tuple[str, int]:
        """Digest of the video and the decisions, and how many calls were not computed again."""
        model = api.compile(self._pipe, POLICY, backend="eager", captured=self._captured, **VALUES)
        model.undo()
        model.runner.masks = []
        begun = Begun(FORMAT, ("generate",), "", environment("cpu"), (identify(model.model),), POLICY, (), 1)
        model.journal = journal = Journal(folder, begun, resume=resume)
        video = run_with(self._pipe, model, self._call, 0, lambda done, total: None).video
        decided = "".join(f"{e.row} {e.branch} {e.chunk} {e.action} {e.computed};" for e in model.events)
        return hashlib.sha256(video.tobytes() + decided.encode()).hexdigest(), journal.known


def child(work: Callable[[], object]) -> tuple[int, int]:
    """A process that does the work and writes what it gives; its number, and where to read from."""
    read, write = os.pipe()
    number = os.fork()
    if number:
        os.close(write)
        return number, read
    status = 1
    try:
        os.write(write, repr(work()).encode())
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def told(number: int, read: int) -> str:
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(number, 0)
    return text


def write(row: dict[str, int]) -> None:
    """Writes docs/benchmarks/kills.json."""
    measured = {
        "title": "The embedded model in a process that is killed at a random moment of its run",
        "command": f"python -m tests.generate.kills {row['kills']}", "machine": machine(),
        "date": datetime.date.today().isoformat(), "columns": COLUMNS, "rows": [row],
    }  # fmt: skip
    PLACE.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def main(points: int) -> int:
    torch.set_num_threads(1)
    rig, chance, lost, computed = Rig(), random.Random(0), 0, []
    with tempfile.TemporaryDirectory() as place:
        begun = time.perf_counter()
        whole = told(*child(lambda: rig.generate(Path(place, "whole"), False)[0]))
        seconds = time.perf_counter() - begun
        for point in range(points):
            folder = Path(place, str(point))
            number, read = child(lambda folder=folder: rig.generate(folder, False))  # type: ignore[misc]
            while not (folder / "progress" / "begun.json").exists():
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 1.0) * seconds)
            os.kill(number, signal.SIGKILL)
            told(number, read)
            found = told(*child(lambda folder=folder: rig.generate(folder, True)))  # type: ignore[misc]
            digest, known = found.strip("()").split(", ") if found else ("", "0")
            computed.append(int(known))
            lost += digest != whole
    row = {
        "kills": points, "identical": points - lost, "begun": sum(map(bool, computed)), "kept": sum(computed),
        "most": max(computed),
    }  # fmt: skip
    write(row)
    print(f"{points} kills, {points - lost} identical videos; calls not computed again: {sorted(computed)}")  # noqa: T201
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
