"""`python -m tests.mutation reach ROOM`, `run ROOM [--sample N] [--seconds S]`, then `report`; or `again [FILE...]`.

`run` can be stopped and started again at any time: the verdicts stand in out/mutants/ROOM.jsonl, and `report` keeps
them in tried.json for other sessions. `run` leaves out what any session has tried.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import pytest

from tests.mutation.children import OPTIONS, Loop, Quick, run_alone
from tests.mutation.codes import ROOT
from tests.mutation.operators import mutants
from tests.mutation.reached import Reached
from tests.mutation.rooms import OUT, REACHED, ROOMS, all_mutants, sampled, tests
from tests.mutation.tried import SEEN, explained, verdicts_of


def reach(room: str, paths: list[str]) -> int:
    """Traces the tests of a room, or some of them."""
    plugin = Reached(REACHED, ROOMS)
    return int(pytest.main(["-q", "-n0", "-p", "no:cacheprovider", *(paths or ROOMS[room].tests)], plugins=[plugin]))


def run(room: str, sample: int, seconds: float, again: bool) -> int:
    """Runs mutants that have no verdict yet, until the time is over."""
    place = OUT / f"{room}.jsonl"
    known = tests(ROOMS[room])
    found = all_mutants(room)
    verdicts = verdicts_of(room, found)
    reasons = explained()
    done = {key for key, what in verdicts.items() if what in SEEN or key in reasons or not again}
    wanted = sampled(found, sample or len(found))
    todo = [mutant for mutant in wanted if mutant.key not in done]
    plugin = Loop(todo, known, place, seconds)
    files = sorted({test.file for test in known})
    status = int(pytest.main([*OPTIONS, *files], plugins=[plugin, Quick()])) if todo else 0
    kinds = dict(Counter(verdicts_of(room, found).values()))
    print(f"{room}: {len(found)} mutants, {len(wanted)} wanted, {len(todo) - len(plugin.verdicts)} left; {kinds}")  # noqa: T201
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("reach", "run"):
        made = verbs.add_parser(verb)
        made.add_argument("room", choices=ROOMS)
        if verb == "reach":
            made.add_argument("paths", nargs="*")
        else:
            made.add_argument("--sample", type=int, default=0)
            made.add_argument("--seconds", type=float, default=200.0)
            made.add_argument("--again", action="store_true", help="try the survivors again")
    verbs.add_parser("report")
    made = verbs.add_parser("again", help="try those that nobody has seen once more, against more tests")
    made.add_argument("paths", nargs="*", help="whole files; default: what calls the changed function")
    made.add_argument("--of", default="", help="only those whose keys contain this text, such as `runtime/`")
    made = verbs.add_parser("alone")
    made.add_argument("write", type=int)
    made.add_argument("file")
    made.add_argument("key")
    made.add_argument("names", nargs="+")
    given = parser.parse_args()
    match given.verb:
        case "reach":
            return reach(given.room, given.paths)
        case "run":
            return run(given.room, given.sample, given.seconds, given.again)
        case "report":
            from tests.mutation.report import write  # `alone` must not have imported the product

            for key in write():
                print(key)  # noqa: T201
            return 0
        case "again":
            from tests.mutation.again import again

            for key, what in again(given.paths, given.of).items():
                print(what, key)  # noqa: T201
            return 0
        case _:
            source = (ROOT / given.file).read_text("utf-8")
            wanted = next(m for m in mutants(given.file, source) if m.key == given.key)
            return run_alone(given.write, wanted, given.names)


if __name__ == "__main__":
    sys.exit(main())
