"""`python -m tests.mutation reach`, `run ROOM [--seconds S]`, then `report`; or `again FILE...`.

`run` can be stopped and started again at any time: the verdicts stand in out/mutants/ROOM.jsonl, and `report` keeps
them in tried.json for other sessions. `run` leaves out what any session has tried.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.mutation.loop import Judge, run_all
from tests.mutation.order import kills_of, order
from tests.mutation.reached import Reached
from tests.mutation.rooms import OUT, REACHED, ROOMS, all_mutants, in_groups
from tests.mutation.tried import SEEN, explained, verdicts_of

MOST = 8.0


def reach(paths: list[str]) -> int:
    """Traces the tests of all rooms, or some tests anew."""
    wanted = paths or sorted({path for room in ROOMS.values() for path in room.tests})
    return int(pytest.main(["-q", "-n0", "-p", "no:cacheprovider", *wanted], plugins=[Reached(REACHED, ROOMS)]))


def run(room: str, given: argparse.Namespace) -> int:
    """Runs mutants that have no verdict yet, until the time is over."""
    found = all_mutants(room)
    verdicts = verdicts_of(room, found)
    reasons = explained(verdicts)
    done = {key for key, what in verdicts.items() if what in SEEN or key in reasons or not given.again}
    todo = [mutant for mutant in in_groups(found) if mutant.key not in done and given.of in mutant.key]
    tests = order(ROOMS[room])
    for mutant, by in kills_of(room, found):
        tests.killed(mutant, by)
    OUT.mkdir(parents=True, exist_ok=True)
    if todo:
        until = time.monotonic() + given.seconds
        run_all(todo, Judge(tests, given.most, OUT / f"{room}.jsonl", given.pause, until))
    later = verdicts_of(room, found)
    print(f"{room}: {len(found)} mutants, {len(found) - len(later)} not tried; {dict(Counter(later.values()))}")  # noqa: T201
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("reach", help="write which lines each test runs")
    made.add_argument("paths", nargs="*", help="default: the tests of all rooms")
    made = verbs.add_parser("run", help="try mutants of a room")
    made.add_argument("room", choices=ROOMS)
    made.add_argument("--seconds", type=float, default=200.0)
    made.add_argument("--most", type=float, default=MOST, help="seconds of tests for each mutant")
    made.add_argument("--of", default="", help="only those whose keys contain this text")
    made.add_argument("--pause", type=Path, default=OUT / "pause", help="wait while this file exists")
    made.add_argument("--again", action="store_true", help="try the survivors again: with --most 90 against more tests")
    verbs.add_parser("report")
    made = verbs.add_parser("again", help="try those that nobody has seen once more, each in a copy of the tree")
    made.add_argument("paths", nargs="+", help="whole files of tests")
    made.add_argument("--of", default="", help="only those whose keys contain this text, such as `runtime/`")
    given = parser.parse_args()
    match given.verb:
        case "reach":
            return reach(given.paths)
        case "run":
            return run(given.room, given)
        case "report":
            from tests.mutation.report import write  # `run` must not import the product before its children do

            for key in write():
                print(key)  # noqa: T201
            return 0
    from tests.mutation.again import again

    for key, what in again(given.paths, given.of).items():
        print(what, key)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
