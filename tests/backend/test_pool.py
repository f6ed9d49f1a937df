"""Worker processes: answers reach their jobs, and a process that dies takes no other job with it."""

from __future__ import annotations

import sys
from pathlib import Path

from mccompile.lowering.pool import Pool

WORKER = """
import json, sys
for line in sys.stdin:
    job = json.loads(line)
    if job["program"] == "crash":
        sys.stderr.write("x" * 100_000 + "\\ncc1plus: out of memory\\n")
        sys.exit(1)
    print(json.dumps({"error": None if job["program"] == job["package"] else job["program"]}), flush=True)
"""
COMMAND = (sys.executable, "-c", WORKER)


def test_each_job_gets_its_answer() -> None:
    with Pool(2, COMMAND) as pool:
        futures = [pool.submit(Path(str(i)), Path(str(i % 3))) for i in range(9)]
        assert [f.result() for f in futures] == [None if i < 3 else str(i) for i in range(9)]


def test_a_crash_is_a_reason_and_the_next_job_runs() -> None:
    with Pool(1, COMMAND) as pool:
        crash, after = pool.submit(Path("crash"), Path("a")), pool.submit(Path("b"), Path("b"))
        assert crash.result() == "the compiler process ended: cc1plus: out of memory"
        assert after.result() is None
