"""Worker processes: answers reach their jobs, and a process that dies takes no other job with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch._inductor import cpu_vec_isa

from mccompile.backend import isa
from mccompile.backend.aot import headers_pay
from mccompile.backend.isa import host_isa
from mccompile.backend.pool import Pool

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
        futures = [pool.submit(Path(str(i)), Path(str(i % 3)), False) for i in range(9)]
        assert [f.result() for f in futures] == [None if i < 3 else str(i) for i in range(9)]


def test_a_crash_is_a_reason_and_the_next_job_runs() -> None:
    with Pool(1, COMMAND) as pool:
        crash, after = pool.submit(Path("crash"), Path("a"), False), pool.submit(Path("b"), Path("b"), False)
        assert crash.result() == "the compiler process ended: cc1plus: out of memory"
        assert after.result() is None


def test_headers_pay_with_many_graphs_in_few_processes() -> None:
    """Two headers hold every process up for 9.2 s; a graph saves 1.4 s of one of them."""
    assert not headers_pay(4, 2)
    assert headers_pay(20, 2)
    assert not headers_pay(20, 16)
    assert headers_pay(7, 0) == headers_pay(7, 1)


def test_the_instruction_set_is_that_of_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One candidate is probed; Inductor, left alone, takes the same; a process that is told it considers no other."""
    found = host_isa()
    assert found == isa._name(cpu_vec_isa.pick_vec_isa())
    everything = list(cpu_vec_isa.supported_vec_isa_list)
    monkeypatch.setattr(cpu_vec_isa, "supported_vec_isa_list", [*everything])
    isa.settle("no such set")
    assert cpu_vec_isa.supported_vec_isa_list == everything
    isa.settle(found)
    assert [str(i) for i in cpu_vec_isa.supported_vec_isa_list] == ([found] if found else [str(i) for i in everything])
