"""`python -m tests.device.cross --out FILE`: compiles for GPUs that are not there. It needs a CUDA build of torch.

Each GPU is a process of its own, since a process believes in one GPU. It prints a line of JSON for each graph.
The command writes all lines to FILE, says what is wrong, and returns 1 if anything is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

COMMAND = "make gpu-check"
TITLE = "Graphs of two blocks of SkyReels-V2-DF-1.3B in bfloat16, and the tiles of the attention kernels"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the lines are written, as a table of docs/benchmarks")
    parser.add_argument("--gpu", action="append", choices=("sm_90", "sm_89"), help="default: both")
    parser.add_argument("--model", choices=("real", "small"), default="real", help="the widths; default: %(default)s")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    gpus = given.gpu or ["sm_90", "sm_89"]
    if given.alone:
        _alone(gpus[0], given.model)
        return 0
    rows: list[dict[str, object]] = []
    for gpu in gpus:
        command = [sys.executable, "-m", "tests.device.cross", "--alone", "--gpu", gpu, "--model", given.model]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                sys.stdout.write(line)
                rows.append(json.loads(line))
        if child.returncode:
            sys.stderr.write(f"the process for {gpu} ended with {child.returncode}\n")
            return 1
    from tests.device.cross.verdict import document, problems

    if given.out is not None:
        versions = f"torch {version('torch')}, Triton {version('triton')}"
        given.out.write_text(json.dumps(document(rows, TITLE, COMMAND, versions), indent=1) + "\n")
    found = problems(rows)
    sys.stdout.write("\n".join((*found, f"{len(rows)} graphs and tiles, {len(found)} problems\n")))
    return int(bool(found))


def _alone(name: str, model: str) -> None:
    """One GPU, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            os.environ[variable] = f"{folder}/{variable.lower()}"
        import torch

        from mccompile.backend import cuda_headers
        from mccompile.studio.bench.subjects import QUICK, REAL
        from tests.device.cross.roles import recorded

        subject = dataclasses.replace(REAL, layers=2) if model == "real" else QUICK
        recordings = recorded(subject, torch.bfloat16)
        from tests.device.cross.pretend import GPUS, pretend, stub_library

        gpu = GPUS[name]
        pretend(gpu)
        cuda_headers.show_to_compilers(cuda_headers.folders())
        from tests.device.cross.packages import compiled
        from tests.device.cross.tiles import compiled_tiles

        for tile in compiled_tiles(gpu):
            t, dtype = tile.tile, str(tile.dtype).removeprefix("torch.")
            graph = f"attention {tile.kernel}, heads of {tile.width}, {dtype}, {t.rows} x {t.keys}, {t.warps} warps"
            _tell({
                "graph": graph, "gpu": name, "kernels": 1, "registers": tile.registers, "spilled": tile.spilled,
                "shared": tile.shared, "shared_most": gpu.shared, "error": tile.error,
            })  # fmt: skip
        with stub_library(folder):
            for one in compiled(recordings):
                _tell({
                    "graph": one.role, "gpu": name, "kernels": sum(one.calls.kernels.values()),
                    "extern": sum(one.calls.extern.values()), "operators": dict(one.calls.extern),
                    "custom": one.calls.custom, "copies": one.calls.copies, "by_rows": one.by_rows,
                    "registers": max((k.registers for k in one.kernels), default=0),
                    "spilled": sum(k.spilled for k in one.kernels), "error": one.error,
                })  # fmt: skip


def _tell(row: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
