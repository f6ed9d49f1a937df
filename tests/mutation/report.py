"""`python -m tests.mutation report` writes what became of the mutants: docs/benchmarks/mutants.json.

A mutant that survives is explained in explained.json, by its key: why no test can see it.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path

from tests.house.measured import machine
from tests.house.readme import BENCHMARKS
from tests.mutation.operators import Mutant
from tests.mutation.rooms import OUT, ROOMS, all_mutants

PLACE = BENCHMARKS / "mutants.json"
EXPLAINED = Path(__file__).parent / "explained.json"
COLUMNS = (
    ("room", "room", ""), ("mutants", "mutants", ","), ("tried", "tried", ","), ("killed", "a test fails", ","),
    ("slow", "runs for ever", ","), ("explained", "changes nothing", ","), ("survived", "not seen", ","),
)  # fmt: skip


def explained() -> dict[str, str]:
    """Why nothing can be seen of a mutant, by its key."""
    found: dict[str, str] = json.loads(EXPLAINED.read_text("utf-8"))
    return found


def row(room: str, found: list[Mutant], verdicts: dict[str, str], known: dict[str, str]) -> dict[str, object]:
    """One line of the table."""
    counts = Counter(
        "explained" if what in ("survived", "unreached") and key in known else what for key, what in verdicts.items()
    )
    return {
        "room": f"{room}/", "mutants": len(found), "tried": len(verdicts), "killed": counts["killed"],
        "slow": counts["slow"], "explained": counts["explained"],
        "survived": counts["survived"] + counts["unreached"],
    }  # fmt: skip


def write() -> list[str]:
    """Writes the file. Returns the keys of survivors that nobody has explained.

    A room that was not run here keeps what the file says of it.
    """
    known, rows, survivors = explained(), [], dict[str, str]()
    open_ones: list[str] = []
    before = json.loads(PLACE.read_text("utf-8"))
    for room in ROOMS:
        place, found = OUT / f"{room}.jsonl", all_mutants(room)
        if not place.exists():
            rows += [kept for kept in before["rows"] if kept["room"] == f"{room}/"]
            survivors |= {key: why for key, why in before["survivors"].items() if _is_of(key, room)}
            open_ones += [key for key in before["open"] if _is_of(key, room)]
            continue
        keys = {mutant.key for mutant in found}
        lines = [json.loads(line) for line in place.read_text().splitlines()]
        verdicts = {v["key"]: v["what"] for v in lines if v["key"] in keys}
        rows.append(row(room, found, verdicts, known))
        alive = [key for key, what in verdicts.items() if what in ("survived", "unreached")]
        survivors |= {key: known[key] for key in alive if key in known}
        open_ones += [key for key in alive if key not in known]
    PLACE.write_text(json.dumps({
        "title": "Mutants, in a random order", "command": "python -m tests.mutation run ROOM",
        "machine": machine(), "date": datetime.date.today().isoformat(), "columns": COLUMNS,
        "rows": [found for found in rows if found["tried"]], "survivors": survivors, "open": open_ones,
    }, indent=1) + "\n", encoding="utf-8")  # fmt: skip
    return open_ones


def _is_of(key: str, room: str) -> bool:
    return key.startswith(f"mccompile/{room}/")
