"""The table of docs/policies.md: `python -m tests.house.policies` writes docs/benchmarks/policies.json.

    python -m tests.house.policies                # what a policy's text says: lines, and when it decides
    python -m tests.house.policies --measure      # generations of the embedded model too, on SkyReels-V2 and on Wan

Measuring takes some fifteen minutes. Each policy is written when it is measured, and the same command goes on: a policy
is measured again only if its text is another one, or with `--again`. `make readme` then puts the table into the page.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from mccompile import ir
from mccompile.diagnostics.failure import Failure
from mccompile.generate.compare import Contender, compile_contenders, unannounced
from mccompile.generate.placement import Placement
from mccompile.generate.run import Settings
from mccompile.language.load import find_policy, load_policy
from mccompile.language.walk import rules_of
from mccompile.policy.in_words import when_decided
from mccompile.resources import shipped_policies
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.step import Steps
from mccompile.studio.bench import generations, wan
from mccompile.studio.bench.timing import CallTimer
from tests.house.measured import machine
from tests.house.readme import BENCHMARKS

FILE = BENCHMARKS / "policies.json"
COMMAND = "python -m tests.house.policies --measure"
SIZE = Settings(num_inference_steps=24, num_frames=15, height=64, width=64)
AUTOREGRESSIVE = 2  # steps by which a chunk of SkyReels-V2 lags behind the one before it
TOGETHER = 6  # policies that share one measurement of vanilla
Subject: TypeAlias = Literal["skyreels", "wan"]
SUBJECTS: tuple[Subject, ...] = ("skyreels", "wan")
Cells: TypeAlias = dict[str, object]
COLUMNS = (
    ("policy", "policy", ""), ("lines", "lines", "d"), ("known", "decides by", ""),
    ("skyreels_bytes", "kept bytes per token", ",.0f"), ("skyreels_flops", "FLOPs", ".0%"),
    ("skyreels_speed_up", "speed-up, SkyReels", ".2f"), ("skyreels_psnr", "PSNR (dB), SkyReels", ".1f"),
    ("wan_speed_up", "speed-up, Wan", ".2f"), ("wan_psnr", "PSNR (dB), Wan", ".1f"),
)  # fmt: skip


def known_by(policy: ir.PolicyIR) -> str:
    """What its decisions wait for: the clock, the model's embedding of the timestep, or data."""
    said = [when_decided(rule, policy) for phase in policy.phases for rule in rules_of(phase)]
    if any(words.startswith("dynamic") for words in said):
        return "data"
    return "timestep" if any("once the model" in words for words in said) else "clock"


def static_cells(name: str) -> Cells:
    """What a shipped policy's text says of it. lines: those that hold more than a comment."""
    text = find_policy(name).text
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return {"policy": name, "lines": len(lines), "known": known_by(load_policy(name)), "text": digest}


def merged(found: Mapping[str, Mapping[str, object]]) -> list[Cells]:
    """A row for each shipped policy; what was measured stays while the policy's text does."""
    rows = []
    for name in shipped_policies():
        cells, before = static_cells(name), found.get(name, {})
        rows.append({**before, **cells} if before.get("text") == cells["text"] else cells)
    return rows


def read(path: Path = FILE) -> dict[str, Cells]:
    """The rows of the file by policy; none where there is no file."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {row["policy"]: row for row in rows}


def write(rows: Sequence[Mapping[str, object]], date: str | None, path: Path = FILE) -> None:
    """date: of the measurement; None keeps what the file says of it."""
    before = json.loads(path.read_text()) if path.exists() else {}
    measured = date is not None
    written = {
        "title": "The shipped policies at their defaults, against vanilla: the embedded model, uncompiled, 24 steps, "
        "15 frames of 64x64 pixels",
        "command": COMMAND,
        "machine": machine() if measured else before.get("machine", "not measured yet"),
        "date": date if measured else before.get("date", "–"),
        "columns": [column for column in COLUMNS if any(column[0] in row for row in rows)],
        "rows": rows,
    }
    path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure(
    subject: Subject, job: generations.GenerationJob, names: Sequence[str], backend: str = "eager"
) -> Iterator[tuple[str, Cells]]:
    """The measured cells of policies, `TOGETHER` of them beside one run of vanilla; or an error's code."""
    clock = CallTimer(torch.device("cpu"))
    for begin in range(0, len(names), TOGETHER):
        models: dict[str, CompiledModel] = {}
        for name in (generations.VANILLA, *names[begin : begin + TOGETHER]):
            way = Contender(name, load_policy("compute" if name == generations.VANILLA else name), {})
            try:
                models |= compile_contenders(job.pipe, job.captured, [way], backend, None)
            except Failure as refused:
                yield name, {f"{subject}_speed_up": refused.diagnostics[0].code}
        watches = {name: KeptPerToken(model) for name, model in models.items()}
        for row in generations.measure(job, models, {}, 1, unannounced, clock):
            name = str(row["name"])
            if name != generations.VANILLA:
                yield name, _cells(subject, row, watches[name])


def _cells(subject: Subject, row: Mapping[str, object], kept: KeptPerToken) -> Cells:
    if row["remark"]:
        return {f"{subject}_speed_up": str(row["remark"])}
    found = {f"{subject}_{key}": row[key] for key in ("speed_up", "psnr", "flops", "tokens")}
    return found | {f"{subject}_bytes": kept.most}


class KeptPerToken:
    """The most bytes that a model has kept between its calls, of all branches, for each token of a call."""

    def __init__(self, model: CompiledModel) -> None:
        self.most = 0.0
        self._runner = model.runner
        model.runner.watch = self

    def during(self, pipe: object) -> AbstractContextManager[None]:
        """Nothing is done before a run or after it."""
        return nullcontext()

    def called(self, steps: Steps) -> None:
        """A call is over."""
        step = next(iter(steps.values()))
        branches = self._runner.requests[step.moment.request].branches
        self.most = max(self.most, sum(s.nbytes() for s in branches.values()) / step.layout.tokens)


def _job(subject: Subject, place: Placement) -> generations.GenerationJob:
    """The pipeline and its call, small enough for sixty policies."""
    if subject == "skyreels":
        return generations.load("embedded", place, replace(SIZE, ar_step=AUTOREGRESSIVE))
    return wan.load(place, replace(wan.SETTINGS, **SIZE.given()))


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("policies", nargs="*", help="default: all")
    given = parser.parse_args()
    rows = merged(read())
    write(rows, None)
    if not given.measure:
        return
    by_name = {str(row["policy"]): row for row in rows}
    wanted = given.policies or [name for name in by_name if name != "compute"]
    for subject in SUBJECTS:
        left = [n for n in wanted if given.again or f"{subject}_speed_up" not in by_name[n]]
        if not left:
            continue
        place = Placement.of("cpu", None, False)
        for name, cells in measure(subject, _job(subject, place), left):
            by_name[name] |= cells
            write(rows, datetime.datetime.now(tz=datetime.UTC).date().isoformat())


if __name__ == "__main__":
    main()
