"""A process that compiles exported programs: `python -m mccompile.backend.worker`.

It reads JSON from standard input, one value per line. The first line holds `threads`, `isa_ok` and `isa`; null ends the
process. Every other line is a job. For each job it writes one answer, a JSON object on a line of its own.

Inductor keeps global state, so each role is compiled in a process that does one job at a time. A process does many
jobs, because importing torch costs as much as compiling a small graph.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # compilers may print: only answers go to the real standard output
    os.dup2(2, 1)
    from torch._inductor import config

    import mccompile.backend.native  # noqa: F401 - registers the operators that graphs call
    from mccompile.backend.aot import CannotCompile, compile_program
    from mccompile.backend.isa import settle
    from mccompile.backend.rows.choice import needs_triton
    from mccompile.backend.rows.operator import rows_operator, windows_operator

    told = json.loads(sys.stdin.readline() or "null")
    if told is None:  # not needed after all
        return
    torch.set_num_threads(told["threads"])
    if told["isa_ok"]:
        config.cpp.vec_isa_ok = True
        settle(told["isa"])
    config.compile_threads = 1
    if torch.cuda.is_available() and not needs_triton():
        rows_operator()
        windows_operator()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            program, package = torch.export.load(job["program"]), Path(job["package"])
            compile_program(program, package, job["headers"], job["by_rows"])
            answer: dict[str, str | None] = {"error": None}
        except CannotCompile as verdict:
            answer = {"error": str(verdict)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
