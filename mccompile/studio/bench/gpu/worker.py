"""The process of `bench gpu`: `python -m mccompile.studio.bench.gpu.worker [--rehearse]`.

It reads one job per line from standard input: the name of a stage, and the rows of the stages before it. It answers
with a line for each row, and with an empty object at the end of the stage. An exception ends the process: its last line
is the error of the stage.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what stages print goes to standard error
    os.dup2(2, 1)
    from mccompile.studio.bench.gpu.machine import gpu, rehearsal
    from mccompile.studio.bench.gpu.work import Workshop

    workshop = Workshop(rehearsal() if "--rehearse" in sys.argv else gpu())

    def answer(value: object) -> None:
        answers.write(json.dumps(value, default=str) + "\n")
        answers.flush()

    for line in sys.stdin:
        job = json.loads(line)
        workshop.run(job["stage"], job["earlier"], lambda row: answer({"row": row}))
        answer({})


if __name__ == "__main__":
    main()
