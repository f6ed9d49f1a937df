"""Compiles exported programs in worker processes (lowering/worker.py), each serving one job at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import torch
from torch._inductor import config


class Pool:
    """A context manager: `submit` hands a program to the next free process; leaving it ends the processes."""

    def __init__(self, size: int) -> None:
        command = [sys.executable, "-m", "mccompile.lowering.worker", str(torch.get_num_threads())]
        command.append("1" if config.cpp.vec_isa_ok else "0")
        self._processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            for _ in range(size)
        ]  # fmt: skip
        self._free: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        for process in self._processes:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(size)

    def submit(self, program: Path, package: Path) -> Future[str | None]:
        """Compiles the program saved at `program` into `package`; the result is why it could not, or None."""
        return self._threads.submit(self._run, json.dumps({"program": str(program), "package": str(package)}))

    def _run(self, job: str) -> str | None:
        process = self._free.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(job + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        self._free.put(process)
        return json.loads(answer)["error"] if answer else f"the compiler process ended{_why(process)}"

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=kind is not None)
        for process in self._processes:
            if kind is not None:
                process.kill()
            process.communicate()


def _why(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    lines = process.stderr.read().strip().splitlines()
    return f": {lines[-1]}" if lines else ""
