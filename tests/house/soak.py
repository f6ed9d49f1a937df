"""Many generations in one process, and what is held after them: `make soak`, or `python -m tests.house.soak 1000`.

Each generation has a prompt of its own, as in a server. The command counts after a tenth of them and after all:
tensors that live, values kept for prompts, events, requests, decided calls, open files, and the memory of the process.
It writes docs/benchmarks/soak.json, and fails where one of the counts has grown.
"""

from __future__ import annotations

import datetime
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from mccompile import api
from mccompile.runtime import runner
from mccompile.runtime.compiled import CompiledModel
from tests.house.measured import machine
from tests.house.readme import BENCHMARKS
from tests.pipelines.conftest import generate, text, wan

POLICY, WARMUP, STEPS = "fixed_interval", 1, 3
EVENTS = 200
"""Of earlier requests, in place of 100,000: the bound is reached within the first tenth."""
PLACE = BENCHMARKS / "soak.json"
COLUMNS = (
    ("generations", "generations", ","), ("tensors", "tensors", ","), ("values", "values of prompts", ","),
    ("events", "events", ","), ("requests", "requests", ","), ("decided", "decided calls", ","),
    ("files", "open files", ","), ("megabytes", "memory (MB)", ",.0f"),
)  # fmt: skip
MORE_MEMORY = 1.02
"""How much larger the process may be at the end: allocators keep pages that they do not need."""


def held(compiled: CompiledModel, generations: int) -> dict[str, object]:
    """What is held after so many generations."""
    gc.collect()
    of = compiled.runner
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "generations": generations,
        "tensors": sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()),
        "values": sum(len(group.results) for group in of.engine.values._groups),
        "events": len(compiled.events),
        "requests": len(of.requests),
        "decided": len(of.decided),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "megabytes": pages * 4096 / 2**20,
    }


def soak(generations: int) -> Iterator[dict[str, object]]:
    """What is held after each tenth."""
    pipe = wan()
    compiled = api.compile(pipe, POLICY, captured=api.prepare(pipe, call=text()), backend="eager", warmup=WARMUP)
    for number in range(1, generations + 1):
        made = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(number))
        generate(pipe, num_inference_steps=STEPS, num_frames=5, prompt_embeds=made, negative_prompt_embeds=-made)
        if number % (generations // 10) == 0:
            yield held(compiled, number)


def grown(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """What is held more of, in words."""
    counts = [key for key, _, _ in COLUMNS if key not in ("generations", "megabytes")]
    found = [f"{key}: {before[key]} and then {after[key]}" for key in counts if after[key] > before[key]]  # type: ignore[operator]
    one, other = float(before["megabytes"]), float(after["megabytes"])  # type: ignore[arg-type]
    return found + ([f"memory: {one:.0f} MB and then {other:.0f} MB"] if other > MORE_MEMORY * one else [])


def main(generations: int) -> int:
    torch.set_num_threads(1)
    runner.EVENTS_KEPT = EVENTS
    rows = []
    for row in soak(generations):
        print(json.dumps(row), flush=True)  # noqa: T201
        rows.append(row)
    found = grown(rows[0], rows[-1])
    for line in found:
        print(line)  # noqa: T201
    measured = {
        "title": f"One process, a new prompt for each generation, `{POLICY}`, {EVENTS} events kept of earlier requests",
        "command": f"python -m tests.house.soak {generations}",
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "columns": COLUMNS,
        "rows": [rows[0], rows[len(rows) // 2 - 1], rows[-1]],
    }
    PLACE.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
