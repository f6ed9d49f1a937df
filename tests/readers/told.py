"""`python -m tests.readers.told` writes what atheris tried, from out/fuzz/*.log, to docs/benchmarks/fuzz.json."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

from tests.house.measured import machine
from tests.house.readme import BENCHMARKS
from tests.readers.fuzz import CORPUS, FOREIGN, LOGS, READERS

COLUMNS = (
    ("reader", "what is read", ""), ("seconds", "seconds", ","), ("inputs", "inputs", ","),
    ("reached", "reached new code", ","), ("kept", "in the corpus", ","), ("faults", "faults", ","),
)  # fmt: skip


def row(name: str) -> dict[str, object]:
    """One line of the table, from the log of libFuzzer."""
    log = LOGS / f"{name}.log"
    text = log.read_text("utf-8", "replace")
    begun = re.search(r"^begun: (\d+)$", text, re.MULTILINE)
    assert begun
    found = {what: int(number) for what, number in re.findall(r"^stat::(\w+): +(\d+)$", text, re.MULTILINE)}
    return {
        "reader": name, "seconds": round(log.stat().st_mtime - int(begun[1])),
        "inputs": found["number_of_executed_units"], "reached": found["new_units_added"],
        "kept": len(list((CORPUS / name).glob("*"))), "faults": text.count("=== Uncaught Python exception"),
    }  # fmt: skip


def main() -> None:
    """Writes the file."""
    names = [name for name in READERS if name not in FOREIGN and (LOGS / f"{name}.log").exists()]
    told = {
        "title": "Changes led by atheris 3.0.0", "command": "python -m tests.readers.fuzz 600", "machine": machine(),
        "date": datetime.date.today().isoformat(), "columns": COLUMNS, "rows": [row(name) for name in names],
    }  # fmt: skip
    place: Path = BENCHMARKS / "fuzz.json"
    place.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
