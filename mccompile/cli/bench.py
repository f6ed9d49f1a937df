"""`mccompile bench`: measures on the user's own machine, and shows a table, JSON and a plot."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mccompile.cli.options import MOST_THREADS, location, positive, up_to
from mccompile.cli.progress import display
from mccompile.cli.terminal import aligned, say

if TYPE_CHECKING:
    from mccompile.studio.bench.report import Report

WHAT = ("ladder", "peers", "peers-wan", "scaling", "overhead", "attention", "gpu")


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("bench", help=f"measure: {', '.join(WHAT)}", description=__doc__)
    parser.add_argument("what", choices=WHAT, metavar="|".join(WHAT))
    parser.add_argument("--model", default="embedded", metavar="NAME", help="`embedded` (default) or a folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    parser.add_argument("--quick", action="store_true", help="small sizes; `ladder --quick` takes up to 40 s")
    parser.add_argument("--real", action="store_true", help="ladder of SkyReels-V2-DF-1.3B's sizes; needs a CUDA GPU")
    parser.add_argument("--repeat", type=positive, metavar="N", help="timed rounds; medians are shown")
    parser.add_argument("--backend", choices=("eager", "inductor"), default="inductor", help="default: %(default)s")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time of this process")
    threads = "of torch on the CPU; default: torch's own"
    parser.add_argument("--threads", type=up_to(MOST_THREADS), metavar="N", help=threads)
    parser.add_argument("--rehearse", action="store_true", help="`gpu` without one: every stage on the CPU, tiny")
    parser.add_argument("--out", type=location, metavar="DIR", help="write JSON and SVG there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints each table, writes each report; with --quick the last line is one JSON object."""
    if arguments.what == "gpu":
        from mccompile.cli.bench_gpu import run_stages

        return run_stages(arguments)
    import torch

    if arguments.backend == "inductor":
        from mccompile.backend.pool import start_early

        start_early()
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.places import prepare_place
    from mccompile.studio.bench.commands import Options, measure, summary

    if arguments.out is not None:
        prepare_place(arguments.out)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.rehearse:
        raise OptionRefused(f"bench {arguments.what} --rehearse", "only `gpu` is rehearsed", "leave --rehearse out")
    options = Options.of(
        arguments.what, arguments.model, arguments.device, arguments.backend, arguments.repeat, arguments.quick,
        arguments.real, arguments.clock,
    )  # fmt: skip
    with display() as shown:
        reports = measure(options, shown.task, shown.compiled)
    for report in reports:
        for line in _table(report):
            say(line)
        if arguments.out is not None:
            for path in report.write(arguments.out, command(arguments)):
                say(f"wrote {path}")
        say()
    if arguments.quick:
        say(json.dumps(summary(reports)))
    return 0


def command(arguments: argparse.Namespace) -> str:
    """The command line that repeats this measurement."""
    words = ["mccompile", "bench", arguments.what]
    for name in ("model", "device", "repeat", "backend", "clock", "threads"):
        value = getattr(arguments, name)
        if value not in (None, "embedded", "inductor", "wall"):
            words += [f"--{name}", str(value)]
    words += [f"--{flag}" for flag in ("quick", "real") if getattr(arguments, flag)]
    return shlex.join(words)


def _table(report: Report) -> Sequence[str]:
    from mccompile.studio.bench.report import cell

    rows = [tuple(c.heading for c in report.columns)]
    rows += [tuple(cell(row, c) for c in report.columns) for row in report.rows]
    right = frozenset(i for i, c in enumerate(report.columns) if c.form)
    return [report.title, *aligned(rows, right)]
