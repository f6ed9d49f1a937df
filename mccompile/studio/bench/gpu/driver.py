"""Runs the stages of `bench gpu` in a process of their own, each until its deadline. This file does not import torch.

An error of CUDA leaves a process of no use, and a kernel that hangs cannot be called back. So the stages run in a
process (worker.py) that is ended with the stage that failed; the next stage begins in a new one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import IO, TypeAlias

from mccompile.studio.bench.gpu.stages import LEAST, STAGES, TOTAL, GpuStage

Line: TypeAlias = dict[str, object]  # stage, seconds, rows, and error where it failed
WORKER = (sys.executable, "-m", "mccompile.studio.bench.gpu.worker")


def run(
    command: Sequence[str] = WORKER, stages: Sequence[GpuStage] = STAGES, total: float = TOTAL
) -> Iterator[Line]:
    """One line per stage, as soon as it has ended. total: seconds of all of them."""
    ends = time.monotonic() + total
    worker: _Worker | None = None
    earlier: dict[str, object] = {}
    for stage in stages:
        left = ends - time.monotonic()
        if left < LEAST:
            yield {"stage": stage.name, "seconds": 0.0, "rows": [], "error": "no time was left for it"}
            continue
        worker = worker or _Worker(command)
        line = worker.stage(stage.name, min(stage.seconds, left), earlier)
        earlier[stage.name] = line["rows"]
        if "error" in line:
            worker.end()
            worker = None
        yield line
    if worker is not None:
        worker.end()


class _Worker:
    """The process. Its standard error goes to a file, of which the last line says why it ended."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env={**os.environ}
        )
        self._told: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._told.put(line)
        self._told.put("")  # it has ended

    def stage(self, name: str, seconds: float, earlier: Mapping[str, object]) -> Line:
        """The line of one stage. earlier: the rows of the stages before it."""
        begun = time.monotonic()
        rows: list[object] = []
        error = self._error(json.dumps({"stage": name, "earlier": earlier}), begun + seconds, rows)
        line: Line = {"stage": name, "seconds": round(time.monotonic() - begun, 3), "rows": rows}
        return line if error is None else {**line, "error": error}

    def _error(self, job: str, ends: float, rows: list[object]) -> str | None:
        """None where the stage has ended well. rows: gets what it tells."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(job + "\n")
            self._process.stdin.flush()
            while True:
                told = self._told.get(timeout=max(ends - time.monotonic(), 0.01))
                if not told:
                    return self._last_words()
                answer = json.loads(told)
                if "row" not in answer:
                    return None
                rows.append(answer["row"])
        except BrokenPipeError:
            return self._last_words()
        except Empty:
            return "it ran past its deadline"

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1][:500] if lines else f"the process ended with code {code}"

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
