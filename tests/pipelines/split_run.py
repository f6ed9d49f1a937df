"""One of two processes that diffusers splits a model over: what a compile says before and after the split.

`python -m tests.pipelines.split_run RANK STORE` prints two codes. The processes find each other by the file STORE.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

from mccompile import api
from mccompile.diagnostics.failure import Failure
from tests.pipelines.conftest import generate, text, wan

PROCESSES = 2


def main(rank: int, store: str) -> None:
    """Splits one pipeline before it is compiled, and another one after."""
    torch.accelerator.device_count = lambda: 1  # diffusers asks for a device of each process, and a CPU has none
    split = ContextParallelConfig(ulysses_degree=PROCESSES)
    before, after = wan(), wan()
    wanted = generate(before, num_inference_steps=2)
    compiled = api.compile(after, "compute", backend="eager", call=text())
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    before.transformer.enable_parallelism(config=split)
    compiled.model.enable_parallelism(config=split)
    torch.testing.assert_close(generate(before, num_inference_steps=2), wanted)
    codes = [_code(lambda: api.compile(before, "compute", backend="eager", call=text()))]
    codes.append(_code(lambda: generate(after, num_inference_steps=2)))
    sys.stdout.write(" ".join(codes))
    sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


def _code(act: object) -> str:
    try:
        act()  # type: ignore[operator]
    except Failure as failure:
        return failure.diagnostics[0].code
    return "nothing"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
