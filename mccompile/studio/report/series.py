"""What the plots of a page draw: accounts and thresholds, layer regions, FLOPs, bytes; and where the plan was wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mccompile.runtime.trace import Event
from mccompile.studio.report.record import Record
from mccompile.studio.report.story import LayerRegion

_FORETOLD = {"compute": "full", "reuse": "reuse"}


def series(record: Record, branch: str) -> dict[str, object]:
    """Data of the plots, of one guidance branch and the first sample; bytes are those of all branches."""
    events = [e for e in record.events if e.branch == branch and e.sample == 0]
    own = {(e.row, e.chunk): e.step for e in events if e.phase}
    return {
        "accounts": _by_chunk(record, branch, own, "accounts"),
        "signals": _by_chunk(record, branch, own, "signals"),
        "thresholds": [{"name": t.account, "phase": t.phase, "values": t.values} for t in record.story.thresholds],
        "regions": [{"name": named(r), "share": _share(events, r)} for r in record.story.regions],
        "flops": [{"name": w.name, "steps": w.step_flops} for w in record.ways if w.step_flops],
        "kept": _kept(record),
        "plan": [{"phase": s.phase, "action": s.action} for s in record.story.plan],
        "surprises": list(surprises(record)),
    }


def named(region: LayerRegion) -> str:
    """A region by its blocks and what is kept of them."""
    return f"blocks {region.first} to {region.last}, {f'keep {region.keep}' if region.keep else 'always computed'}"


def _by_chunk(record: Record, branch: str, own: Mapping[tuple[int, int], int], what: str) -> list[dict[str, object]]:
    """A line for each chunk and name: its own steps, and the values there."""
    lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for call in record.story.calls:
        for chunk in call.chunks if call.branch == branch else ():
            step = own.get((call.row, chunk.chunk))
            for name, value in chunk.accounts if what == "accounts" else chunk.signals:
                if step is not None:
                    lines.setdefault((name, chunk.chunk), []).append((step, value))
    return [
        {"name": name, "chunk": chunk, "steps": [s for s, _ in points], "values": [v for _, v in points]}
        for (name, chunk), points in sorted(lines.items())
    ]


def _share(events: Sequence[Event], region: LayerRegion) -> list[float]:
    """For each call, the share of its tokens that ran through the region."""
    rows: dict[int, tuple[int, int]] = {}
    for event in events:
        ran = event.computed if region.keep else event.tokens if event.action != "skip" else 0
        done, whole = rows.get(event.row, (0, 0))
        rows[event.row] = done + ran, whole + event.tokens
    return [done / whole if whole else 0.0 for _, (done, whole) in sorted(rows.items())]


def _kept(record: Record) -> dict[str, list[int]]:
    """Bytes of all branches' stores after each row of calls."""
    latest: dict[str, int] = {}
    rows: dict[int, int] = {}
    for call in record.story.calls:
        latest[call.branch] = call.kept
        rows[call.row] = sum(latest.values())
    return {"rows": list(rows), "bytes": list(rows.values())}


def surprises(record: Record) -> Iterator[str]:
    """Where a chunk did something else than its plan had said, in words, each branch and step once."""
    done = {(e.row, e.branch, e.chunk): e for e in record.events if e.sample == 0}
    for call in record.story.calls:
        for chunk in call.chunks:
            event = done.get((call.row, call.branch, chunk.chunk))
            expected = _FORETOLD.get(chunk.predicted or "")
            if event is not None and expected is not None and event.action != expected:
                where = f"call {call.row} ({call.branch}), chunk {chunk.chunk}, step {event.step}"
                yield f"{where}: the plan said {chunk.predicted}, it was {event.action}: {event.why}"
