"""Which code is changed, which tests ought to see it, and the order in which the mutants of a room are tried."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from tests.mutation.codes import ROOT, source
from tests.mutation.operators import Mutant, mutants

OUT = ROOT / "out" / "mutants"
REACHED = OUT / "reached.json"
OPERATIONS = "tests/lowering/test_operations.py"
DECISIONS = ("tests/runtime/test_decision_oracle.py", "tests/runtime/test_wrong_decisions.py")
RUNS = ("tests/runtime", "tests/pipelines", "tests/device")
LOWERED = (
    "tests/lowering", "tests/capture/test_sublayers.py", "tests/policy/test_static_values.py",
    "tests/generate/test_emit.py",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Room:
    """tests: the folders and files that ought to see a change of the room."""

    name: str
    tests: tuple[str, ...]


ROOMS = {
    room.name: room
    for room in (
        Room("arithmetic", ("tests/arithmetic", "tests/policy", "tests/language", OPERATIONS)),
        Room("policy", ("tests/policy", "tests/language", "tests/cli/test_policy_verbs.py", *DECISIONS)),
        Room("lowering", (*LOWERED, *RUNS)),
        Room("runtime", (*RUNS, "tests/generate/test_journal.py")),
    )
}


def all_mutants(room: str) -> list[Mutant]:
    """Those of a room, file by file."""
    found: list[Mutant] = []
    for path in sorted((ROOT / "mccompile" / room).rglob("*.py")):
        file = str(path.relative_to(ROOT))
        found += mutants(file, source(file))
    return found


def in_groups(found: list[Mutant], seed: int = 0) -> list[Mutant]:
    """The functions in a random order, and all mutants of a function together: they die of the same tests."""
    groups = defaultdict[tuple[str, str], list[Mutant]](list)
    for mutant in found:
        groups[mutant.file, mutant.scope].append(mutant)
    some = list(groups.values())
    random.Random(seed).shuffle(some)
    return [mutant for group in some for mutant in group]
