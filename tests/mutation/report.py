"""`python -m tests.mutation report` writes what became of the mutants: docs/benchmarks/mutants.json.

A mutant that survives is explained in explained.json, by its key: why no test can see it.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Mapping

from tests.house.measured import machine
from tests.mutation.operators import Mutant
from tests.mutation.rooms import ROOMS, all_mutants
from tests.mutation.tried import PLACE, SEEN, explained, keep, verdicts_of

COLUMNS = (
    ("room", "room", ""), ("mutants", "mutants", ","), ("tried", "tried", ","), ("killed", "a test fails", ","),
    ("slow", "runs for ever", ","), ("explained", "changes nothing", ","), ("survived", "not seen", ","),
)  # fmt: skip


def row(room: str, found: list[Mutant], verdicts: Mapping[str, str], reasons: Mapping[str, str]) -> dict[str, object]:
    """One line of the table."""
    counts = Counter(
        "explained" if what in ("survived", "unreached") and key in reasons else what for key, what in verdicts.items()
    )
    return {
        "room": f"{room}/", "mutants": len(found), "tried": len(verdicts), "killed": counts["killed"],
        "slow": counts["slow"], "explained": counts["explained"],
        "survived": counts["survived"] + counts["unreached"],
    }  # fmt: skip


def write(later: Mapping[str, str] | None = None) -> list[str]:
    """Writes the file, and tried.json. Returns the keys of survivors that nobody has explained.

    later: verdicts that hold whatever was known before.
    """
    reasons, rows, survivors = explained(), [], dict[str, str]()
    left: list[str] = []
    for room in ROOMS:
        found = all_mutants(room)
        verdicts = verdicts_of(room, found, later)
        rows.append(row(room, found, verdicts, reasons))
        alive = [key for key, what in verdicts.items() if what not in SEEN]
        survivors |= {key: reasons[key] for key in alive if key in reasons}
        left += [key for key in alive if key not in reasons]
        keep(f"mccompile/{room}/", verdicts)
    PLACE.write_text(json.dumps({
        "title": "Mutants, in a random order", "command": "python -m tests.mutation run ROOM",
        "machine": machine(), "date": datetime.date.today().isoformat(), "columns": COLUMNS,
        "rows": [found for found in rows if found["tried"]], "survivors": survivors, "open": left,
    }, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")  # fmt: skip
    return left
