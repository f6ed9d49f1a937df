"""`mccompile bench gpu`: one JSON line per stage, as soon as the stage has ended."""

from __future__ import annotations

import argparse
import contextlib
import json

from mccompile.cli.terminal import say

FILE = "gpu.jsonl"
OWN = ("model", "device", "quick", "real", "repeat", "threads")  # options that the stages settle themselves


def run_stages(arguments: argparse.Namespace) -> int:
    """Runs all stages; returns 1 where one of them failed. Raises OptionRefused where there is no GPU."""
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.places import prepare_place
    from mccompile.studio.bench.gpu.driver import WORKER, run
    from mccompile.studio.bench.gpu.stages import REHEARSED

    for name in OWN:
        if getattr(arguments, name) not in (None, False, "embedded"):
            raise OptionRefused(f"bench gpu --{name}", "it measures at sizes of its own", f"leave --{name} out")
    if not arguments.rehearse:
        import torch

        if not torch.cuda.is_available():
            remedy = "run it where there is one (docs/gpu.md), or rehearse it on the CPU with --rehearse"
            raise OptionRefused("bench gpu", "torch sees no CUDA device", remedy)
    failed = False
    with contextlib.ExitStack() as stack:
        kept = None
        if arguments.out is not None:
            prepare_place(arguments.out)
            kept = stack.enter_context((arguments.out / FILE).open("w", encoding="utf-8"))
        lines = run((*WORKER, "--rehearse"), REHEARSED, 3600.0) if arguments.rehearse else run()
        for line in lines:
            failed |= "error" in line
            text = json.dumps(line)
            say(text)
            if kept is not None:
                kept.write(text + "\n")
                kept.flush()
    return int(failed)
