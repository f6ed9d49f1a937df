"""Which code is changed, which tests ought to see it, and which of them a mutant is run against."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tests.mutation.codes import ROOT, Change
from tests.mutation.operators import Mutant, mutants

OUT = ROOT / "out" / "mutants"
REACHED = OUT / "reached.json"
SECONDS = 5.0
"""Of processor time: a mutant that as many seconds of tests do not see has survived."""
OPERATIONS = "tests/lowering/test_operations.py"
DECISIONS = ("tests/runtime/test_decision_oracle.py", "tests/runtime/test_wrong_decisions.py")
RUNS = ("tests/runtime", "tests/pipelines", "tests/device")


@dataclass(frozen=True, slots=True)
class Room:
    """tests: the folders and files that ought to see a change of the room."""

    name: str
    tests: tuple[str, ...]


ROOMS = {
    room.name: room
    for room in (
        Room("arithmetic", ("tests/arithmetic", "tests/policy", "tests/language", OPERATIONS)),
        Room("policy", ("tests/policy", "tests/language", *DECISIONS)),
        Room("lowering", ("tests/lowering", *RUNS)),
        Room("runtime", (*RUNS, "tests/generate/test_journal.py")),
    )
}


@dataclass(frozen=True, slots=True)
class Test:
    """seconds: of processor time, traced."""

    name: str
    seconds: float
    reached: frozenset[str]

    @property
    def file(self) -> str:
        return self.name.partition("::")[0]


def all_mutants(room: str) -> list[Mutant]:
    """Those of a room, file by file."""
    found: list[Mutant] = []
    for path in sorted((ROOT / "mccompile" / room).rglob("*.py")):
        found += mutants(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    return found


def sampled(found: list[Mutant], number: int, seed: int = 0) -> list[Mutant]:
    """A share of each file's mutants, at random, `number` in all or a few more. Every file has one at least."""
    chance, by_file = random.Random(seed), defaultdict[str, list[Mutant]](list)
    for mutant in found:
        by_file[mutant.file].append(mutant)
    share = min(1.0, number / max(1, len(found)))
    taken = [m for some in by_file.values() for m in chance.sample(some, max(1, round(share * len(some))))]
    chance.shuffle(taken)
    return taken


def tests(room: Room) -> list[Test]:
    """Those of a room that `reach` has traced. Raises SystemExit where it has not run."""
    if not REACHED.exists():
        raise SystemExit(f"run `python -m tests.mutation reach {room.name}` first")
    known: Mapping[str, tuple[float, list[str]]] = json.loads(REACHED.read_text())
    found = {name: value for name, value in known.items() if name.startswith(room.tests)}
    return [Test(name, seconds, frozenset(reached)) for name, (seconds, reached) in found.items()]


def chosen(mutant: Mutant, made: Change, known: list[Test], most: float = SECONDS) -> list[str]:
    """The tests that a mutant is run against: quick ones first, until their processor time is `most` seconds.

    First stand those that call the changed function, then the others of the same files: fixtures and caches that
    several tests share are counted for the first of them only.
    """
    of_file = f"{mutant.file}:"
    calls = [t for t in known if made.reached in t.reached] if not made.lasting else []
    if not calls:
        calls = [t for t in known if any(name.startswith(of_file) for name in t.reached)]
    calling = {t.name for t in calls}
    files = {t.file for t in calls}
    mates = [t for t in known if t.file in files and t.name not in calling]
    taken, seconds = [], 0.0
    for test in [*sorted(calls, key=lambda t: t.seconds), *sorted(mates, key=lambda t: t.seconds)]:
        if taken and seconds + test.seconds > most:
            break
        taken.append(test.name)
        seconds += test.seconds
    return taken
