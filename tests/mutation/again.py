"""`python -m tests.mutation again FILE...` tries those of docs/benchmarks/mutants.json that nobody has seen again.

Each is written into a copy of the tree, and pytest runs the named files there until a test fails.
"""

from __future__ import annotations

import ast
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutation.codes import ROOT
from tests.mutation.operators import Mutant, mutants, mutated
from tests.mutation.report import write
from tests.mutation.tried import SEEN, explained, open_ones

LIMIT = 600
"""Seconds of processor time. A mutant under which the files need more runs for ever."""
PARTS = ("mccompile", "tests", "grammar", "policies", "docs", "pyproject.toml")


def again(files: list[str], part: str = "") -> dict[str, str]:
    """What became of each: `killed`, `slow`, `explained`, `survived`, or `gone` where the code reads otherwise now.

    The report is written anew: what is killed counts as killed, and what is gone counts no longer. part: only those
    whose keys contain it.
    """
    reasons = explained(open_ones())
    with tempfile.TemporaryDirectory() as place:
        for one in PARTS:
            subprocess.run(["cp", "-r", str(ROOT / one), place], check=True)
        found = {key: verdict(key, reasons, Path(place), files) for key in open_ones() if part in key}
    write({key: what for key, what in found.items() if what in (*SEEN, "survived")})
    return found


def verdict(key: str, reasons: dict[str, str], tree: Path, files: list[str]) -> str:
    """Of one mutant. tree: a copy of this one."""
    if key in reasons:
        return "explained"
    file = key.partition(" ")[0]
    source = (ROOT / file).read_text("utf-8")
    mutant = next((m for m in mutants(file, source) if m.key == key), None)
    if mutant is None:
        return "gone"
    return run(mutant, source, tree, files)


def run(mutant: Mutant, source: str, tree: Path, files: list[str]) -> str:
    """Whether one of the files sees a mutant."""
    (tree / mutant.file).write_text(ast.unparse(ast.fix_missing_locations(mutated(source, mutant))), "utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *files]
        env = {**os.environ, "PYTHONPATH": str(tree)}
        status = subprocess.run(
            command, cwd=tree, env=env, capture_output=True, check=False, preexec_fn=_limited
        ).returncode
    finally:
        (tree / mutant.file).write_text(source, "utf-8")
    if status == -signal.SIGXCPU:
        return "slow"
    if status not in (0, 1, 2):  # 2: a file that cannot be imported
        raise SystemExit(f"pytest ended with {status} on {mutant.key}")
    return "survived" if status == 0 else "killed"


def _limited() -> None:
    """Ends a process that runs for ever, as some mutants do."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
