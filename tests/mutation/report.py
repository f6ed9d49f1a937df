"""`python -m tests.mutation report` writes what became of the mutants: docs/benchmarks/mutants.json.

A mutant that survives is explained in explained.json, by its key: why no test can see it.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tests.house.measured import machine
from tests.mutation.operators import Mutant
from tests.mutation.rooms import ROOMS, all_mutants
from tests.mutation.tried import PLACE, SEEN, explained, keep, verdicts_of

Seen: TypeAlias = Sequence[int]
"""How many mutants a test saw: by failing, and by running for ever."""
COLUMNS = (
    ("room", "room", ""), ("mutants", "mutants", ","), ("tried", "tried", ","), ("killed", "a test fails", ","),
    ("slow", "runs for ever", ","), ("explained", "changes nothing", ","), ("survived", "not seen", ","),
)  # fmt: skip


def row(
    room: str, found: list[Mutant], verdicts: Mapping[str, str], reasons: Mapping[str, str], earlier: Seen
) -> dict[str, object]:
    """One line of the table. earlier: how many a test saw in sessions of which numbers alone are known.

    The larger one of both samples counts, never their sum: the same mutants may be in both.
    """
    counts = Counter("explained" if what not in SEEN and key in reasons else what for key, what in verdicts.items())
    killed, slow = max((counts["killed"], counts["slow"]), earlier, key=sum)
    survived = counts["survived"] + counts["unreached"]
    return {
        "room": f"{room}/", "mutants": len(found), "tried": killed + slow + counts["explained"] + survived,
        "killed": killed, "slow": slow, "explained": counts["explained"], "survived": survived,
    }  # fmt: skip


def write(later: Mapping[str, str] | None = None) -> list[str]:
    """Writes the file, and tried.json. Returns the keys of survivors that nobody has explained.

    later: verdicts that hold whatever was known before.
    """
    rows, survivors, left = list[dict[str, object]](), dict[str, str](), list[str]()
    earlier: dict[str, Seen] = json.loads(PLACE.read_text("utf-8")).get("earlier", {})
    for room in ROOMS:
        found = all_mutants(room)
        verdicts = verdicts_of(room, found, later)
        alive = [key for key, what in verdicts.items() if what not in SEEN]
        reasons = explained(alive)
        rows.append(row(room, found, verdicts, reasons, earlier.get(f"{room}/", (0, 0))))
        survivors |= {key: reasons[key] for key in alive if key in reasons}
        left += [key for key in alive if key not in reasons]
        keep(f"mccompile/{room}/", verdicts)
    PLACE.write_text(json.dumps({
        "title": "Mutants, the functions in a random order", "command": "python -m tests.mutation run ROOM",
        "machine": machine(), "date": datetime.date.today().isoformat(), "columns": COLUMNS,
        "rows": [found for found in rows if found["tried"]], "survivors": survivors, "earlier": earlier, "open": left,
    }, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")  # fmt: skip
    return left
