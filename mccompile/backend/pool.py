"""Compiles exported programs in worker processes (backend/worker.py). Each process does one job at a time."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO

import torch
from torch._inductor import config

from mccompile.backend.isa import host_isa


class _Worker:
    """One process. Its standard error goes to a file: a pipe that nobody reads would stop it when full."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip

    def tell(self, line: str) -> None:
        """Says a line that has no answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def ask(self, job: str) -> str | None:
        """The answer to a job; None where the process ended."""
        assert self._process.stdout is not None
        try:
            self.tell(job)
            return self._process.stdout.readline() or None
        except BrokenPipeError:
            return None

    def end(self, now: bool) -> str:
        """Ends the process, after its job unless `now`; the last line it said on standard error."""
        if now:
            self._process.kill()
        self._process.communicate()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        self._errors.close()
        return lines[-1] if lines else f"exit code {self._process.returncode}"


_OWN = (sys.executable, "-m", "mccompile.backend.worker")
_early: list[_Worker] = []


def start_early() -> None:
    """Starts a process for the next Pool: its imports take seconds, in which models are loaded and captured."""
    if not _early:
        _early.append(_Worker(_OWN))
        atexit.register(_end_early)


def _end_early() -> None:
    while _early:
        _early.pop().end(now=True)


class Pool:
    """A context manager: `submit` hands a program to the next free process; leaving it ends the processes."""

    def __init__(self, size: int, command: Sequence[str] | None = None) -> None:
        self._command = command
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(size):
            self._free.put(self._worker())
        self._size = size
        self._threads = ThreadPoolExecutor(size)

    def _worker(self) -> _Worker:
        if self._command is not None:
            return _Worker(self._command)
        worker = _early.pop() if _early else _Worker(_OWN)
        own = {"threads": torch.get_num_threads(), "isa_ok": bool(config.cpp.vec_isa_ok), "isa": host_isa()}
        with contextlib.suppress(BrokenPipeError):  # it has ended: its first job says so
            worker.tell(json.dumps(own))
        return worker

    def submit(self, program: Path, package: Path, headers: bool, by_rows: bool = False) -> Future[str | None]:
        """Compiles the program saved at `program` into `package`. The result is None, or the reason for a failure.

        headers, by_rows: as in backend/aot.py, `compile_program`.
        """
        job = {"program": str(program), "package": str(package), "headers": headers, "by_rows": by_rows}
        return self._threads.submit(self._run, json.dumps(job))

    def _run(self, job: str) -> str | None:
        worker = self._free.get()
        answer = worker.ask(job)
        if answer is not None:
            self._free.put(worker)
            return json.loads(answer)["error"]
        self._free.put(self._worker())  # the next job is not to blame
        return f"the compiler process ended: {worker.end(now=True)}"

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=kind is None, cancel_futures=True)
        while not self._free.empty():
            self._free.get().end(now=kind is not None)
