"""tried.json: what became of every mutant that was ever tried, so that one session goes on where another stopped.

It names the mutants that a test saw, by a digest of their keys, in one line for each first digit: so two sessions
seldom change the same line. Those that no test sees are named elsewhere, in words:
explained.json and the `open` ones of docs/benchmarks/mutants.json. A mutant whose code reads otherwise now has another
key, so it counts no longer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

from tests.mutation.codes import ROOT
from tests.mutation.operators import Mutant
from tests.mutation.rooms import OUT

PLACE = ROOT / "docs" / "benchmarks" / "mutants.json"
EXPLAINED = Path(__file__).parent / "explained.json"
TRIED = Path(__file__).parent / "tried.json"
SEEN = ("killed", "slow")


def digest(key: str) -> str:
    """Eight hexadecimal digits: of the four hundred keys of a file, two are alike once in fifty thousand times."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def known(found: Iterable[Mutant], place: Path = TRIED) -> dict[str, str]:
    """Of these mutants those that a test has seen in some session: `killed` or `slow`, by their keys."""
    told = json.loads(place.read_text("utf-8"))
    seen = {
        file: {name: what for what, lines in row.items() for line in lines for name in line.split()}
        for file, row in told.items()
    }
    made = ((m.key, seen.get(m.file, {}).get(digest(m.key), "")) for m in found)
    return {key: what for key, what in made if what}


def keep(room: str, verdicts: Mapping[str, str], place: Path = TRIED) -> None:
    """Writes what was seen of one room in place of what stood there. room: its folder, such as mccompile/policy/."""
    told = {file: row for file, row in json.loads(place.read_text("utf-8")).items() if not file.startswith(room)}
    for file in {key.partition(" ")[0] for key in verdicts}:
        mine = {key: what for key, what in verdicts.items() if key.startswith(f"{file} ")}
        names = {what: sorted(digest(key) for key in mine if mine[key] == what) for what in SEEN}
        row = {what: _lines(found) for what, found in names.items() if found}
        told |= {file: row} if row else {}
    place.write_text(json.dumps(dict(sorted(told.items())), indent=1) + "\n", "utf-8")


def _lines(names: list[str]) -> list[str]:
    return [" ".join(some) for _, some in groupby(names, key=lambda name: name[0])]


def explained(alive: Iterable[str] = ()) -> dict[str, str]:
    """Why nothing can be seen of a mutant, by its key: of each that has a reason of its own, and of some survivors.

    alive: the keys of those that no test has seen. A pattern gives the reason for all of them that match it wholly.
    """
    told = json.loads(EXPLAINED.read_text("utf-8"))
    matching = ((key, why) for key in alive for pattern, why in told["patterns"].items() if re.fullmatch(pattern, key))
    return dict(matching) | dict(told["mutants"])


def open_ones() -> list[str]:
    """The keys of those that no test has seen, and that nobody has explained."""
    found: list[str] = json.loads(PLACE.read_text("utf-8"))["open"]
    return found


def _survivors() -> list[str]:
    told = json.loads(PLACE.read_text("utf-8"))
    return [*explained(), *told["survivors"], *told["open"]]


def verdicts_of(room: str, found: list[Mutant], later: Mapping[str, str] | None = None) -> dict[str, str]:
    """What became of each mutant of a room: in earlier sessions, in this one, and then `later`."""
    keys = {mutant.key for mutant in found}
    made = dict.fromkeys(_survivors(), "survived") | known(found)
    place = OUT / f"{room}.jsonl"
    lines = [json.loads(line) for line in place.read_text("utf-8").splitlines()] if place.exists() else []
    made |= {line["key"]: line["what"] for line in lines if line["what"] in SEEN or line["key"] not in made}
    return {key: what for key, what in (made | dict(later or {})).items() if key in keys}
