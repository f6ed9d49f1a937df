"""Every decision as data: one event per (call, sample, chunk, group of regions), written as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mccompile.backend.records import read_record
from mccompile.runtime.errors import TraceMalformed

EventAction = Literal["skip", "reuse", "partial", "full"]


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to one chunk of one sample in one call of the transformer.

    action: skip (the result is not needed), reuse (nothing is computed), partial, or full. computed: how many of the
    chunk's tokens ran through the cached regions. why: what decided this. region: the name of the regions that it is
    about; "" for those without a name. expert: the place of the transformer that was called, where two take turns.
    """

    request: str
    row: int
    branch: str
    sample: int
    chunk: int
    step: int
    phase: str
    action: EventAction
    computed: int
    tokens: int
    why: str
    region: str = ""
    expert: str = ""


@dataclass(slots=True)
class Log:
    """What runs leave behind. The experts of one pipeline write one log.

    events: in the order of the calls. masks: the computed tokens of every call, bool [B, G, F, P], where they are kept.
    """

    events: list[Event] = field(default_factory=list)
    masks: list[np.ndarray] | None = None


def write_jsonl(path: Path, events: Iterable[Event]) -> None:
    """One JSON object a line, keys sorted. Raises OSError as the file system does."""
    path.write_text("".join(json.dumps(asdict(e), sort_keys=True) + "\n" for e in events), encoding="utf-8")


def read_jsonl(path: Path) -> tuple[Event, ...]:
    """The events that `write_jsonl` wrote. Raises TraceMalformed (MC0640) with the line that is none of them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceMalformed(str(path), 0, str(error).lower()) from error
    return tuple(_event(path, number, line) for number, line in enumerate(lines, 1))


def _event(path: Path, number: int, line: str) -> Event:
    try:
        return read_record(Event, json.loads(line))
    except (ValueError, RecursionError) as error:
        raise TraceMalformed(str(path), number, f"{str(error).splitlines()[0]:.200}") from error


def by_cell(events: Iterable[Event]) -> tuple[Event, ...]:
    """One event for each chunk of each sample in each call: what happened to it in all of its regions together."""
    cells: dict[tuple[str, int, str, int, int], list[Event]] = {}
    for e in events:
        cells.setdefault((e.request, e.row, e.branch, e.sample, e.chunk), []).append(e)
    return tuple(_together(cell) for cell in cells.values())


def _together(cell: Sequence[Event]) -> Event:
    first, actions = cell[0], {e.action for e in cell}
    if len(cell) == 1:
        return first
    action: EventAction = next(iter(actions)) if len(actions) == 1 else "partial"
    computed, tokens = sum(e.computed for e in cell), sum(e.tokens for e in cell)
    why = ", ".join(dict.fromkeys(e.why for e in cell))
    return replace(first, action=action, computed=computed, tokens=tokens, why=why, region="")


def share_computed(events: Iterable[Event]) -> float:
    """The share of computed tokens among all tokens of all calls; 1.0 for vanilla."""
    done = list(events)
    total = sum(e.tokens for e in done)
    return sum(e.computed for e in done) / total if total else 0.0
