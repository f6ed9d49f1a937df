"""Equal quality: for each run of a peer the fastest of ours that is at least as near to vanilla's video.

These are pure functions of the rows of `bench peers`. A row has `name` and `side` ("ours" or "peers"). Unless it
failed, it also has `speed_up` over vanilla and `psnr` against it in dB (None if the videos are equal).
"""

from __future__ import annotations

from collections.abc import Sequence

from mccompile.studio.bench.report import Column, Json, Plot, Report, Row

OURS, PEERS = "ours", "peers"
ALIKE = 60.0  # dB: the mean error is a quarter of a step of 8 bits; what is nearer still counts as this
COLUMNS = (
    Column("name", "peer"), Column("psnr", "PSNR (dB)", ".1f"), Column("speed_up", "speed-up", ".2f"),
    Column("ours", "ours, as near or nearer"), Column("ours_psnr", "PSNR (dB)", ".1f"),
    Column("ours_speed_up", "speed-up", ".2f"), Column("ratio", "ours / peer", ".2f"),
)  # fmt: skip
PLOT = Plot(
    "near", "ratio", "the peer's PSNR (dB)", "our speed-up / the peer's, at its PSNR or more", "kind", line=False
)


def near(row: Row) -> float:
    """PSNR against vanilla, at most ALIKE."""
    psnr = row["psnr"]
    assert psnr is None or isinstance(psnr, int | float)
    return ALIKE if psnr is None else min(float(psnr), ALIKE)


def ran(row: Row) -> bool:
    """Whether the row was timed: a way that failed has no speed."""
    return isinstance(row.get("speed_up"), int | float)


def verdict(rows: Sequence[Row]) -> tuple[Row, ...]:
    """One row per peer that ran, nearest to vanilla first; ratio < 1: it is faster than we are at its quality.

    Vanilla itself is among ours, as what there is where nothing approximate is near enough. Raises ValueError where
    no row of ours is as near as a peer.
    """
    ours = [r for r in rows if r["side"] == OURS and ran(r)]
    found: list[Row] = []
    for peer in sorted((r for r in rows if r["side"] == PEERS and ran(r)), key=near, reverse=True):
        able = [r for r in ours if near(r) >= near(peer)]
        if not able:
            raise ValueError(f"no row of ours is as near to vanilla as `{peer['name']}`")
        best = max(able, key=_speed)
        about: dict[str, Json] = {"kind": peer["kind"], "near": near(peer)}
        found.append(
            {
                "name": peer["name"], "psnr": peer["psnr"], "speed_up": peer["speed_up"], "ours": best["name"],
                "ours_psnr": best["psnr"], "ours_speed_up": best["speed_up"],
                "ratio": _speed(best) / _speed(peer), **about,
            }
        )  # fmt: skip
    return tuple(found)


def with_plane(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with `near`, where they are drawn, and `front`: whether no other row is both faster and nearer."""
    timed = [r for r in rows if ran(r)]
    return tuple({**r, "near": near(r), "front": _undominated(r, timed)} if ran(r) else r for r in rows)


def report(peers: Report) -> Report:
    """The table of `verdict` beside the one that it is drawn from."""
    title = "At each peer's PSNR or more: the fastest of ours"
    return Report(f"{peers.name}_verdict", title, COLUMNS, verdict(peers.rows), PLOT, peers.settings)


def _undominated(row: Row, rows: Sequence[Row]) -> bool:
    here = (_speed(row), near(row))
    there = [(_speed(r), near(r)) for r in rows]
    return not any(t != here and t[0] >= here[0] and t[1] >= here[1] for t in there)


def _speed(row: Row) -> float:
    speed = row["speed_up"]
    assert isinstance(speed, int | float)
    return float(speed)
