"""Equal quality: who is the fastest of ours that is as near as a peer, and which rows no other row beats."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mccompile.studio.bench.peers import COLUMNS, PLOT
from mccompile.studio.bench.plot import draw
from mccompile.studio.bench.report import Report, Row
from mccompile.studio.bench.verdict import ALIKE, near, report, verdict, with_plane


def row(name: str, side: str, speed_up: float, psnr: float | None) -> Row:
    return {"name": name, "kind": name, "side": side, "speed_up": speed_up, "psnr": psnr}


ROWS = (
    row("vanilla", "ours", 1.0, None),
    row("careful", "ours", 2.0, 45.0),
    row("bold", "ours", 4.0, 30.0),
    row("clumsy", "ours", 3.0, 20.0),
    row("near", "peers", 1.6, 44.0),
    row("wild", "peers", 5.0, 29.0),
    row("nearest", "peers", 1.2, 46.0),
    row("stock", "peers", 0.9, 130.0),
    {"name": "broken", "kind": "broken", "side": "peers", "remark": "ValueError: no"},
)


def test_the_fastest_that_is_near_enough() -> None:
    found = {r["name"]: r for r in verdict(ROWS)}
    assert list(found) == ["stock", "nearest", "near", "wild"]  # nearest to vanilla first, without what failed
    assert [r["ours"] for r in found.values()] == ["vanilla", "vanilla", "careful", "bold"]
    assert [r["ratio"] for r in found.values()] == [pytest.approx(x) for x in (1 / 0.9, 1 / 1.2, 1.25, 0.8)]


def test_an_equal_video_is_as_near_as_60_db() -> None:
    assert near(ROWS[0]) == near(row("x", "ours", 1.0, 130.0)) == ALIKE == 60.0


def test_no_row_that_is_near_enough() -> None:
    with pytest.raises(ValueError, match="as near to vanilla as `stock`"):
        verdict([r for r in ROWS if r["name"] not in ("vanilla", "careful")])


def test_the_front_has_what_nothing_beats() -> None:
    rows = with_plane(ROWS)
    assert [r["name"] for r in rows if r.get("front")] == ["vanilla", "careful", "bold", "wild", "nearest"]
    assert "near" not in rows[-1]


numbers = st.floats(0.5, 10.0), st.one_of(st.none(), st.floats(5.0, 90.0))
runs = st.lists(st.tuples(st.sampled_from(("ours", "peers")), *numbers), max_size=12)


@given(runs)
def test_laws(found: list[tuple[str, float, float | None]]) -> None:
    rows = (ROWS[0], *(row(str(i), *values) for i, values in enumerate(found)))
    ours = [r for r in rows if r["side"] == "ours"]
    for made in verdict(rows):
        better = [r["speed_up"] for r in ours if near(r) >= made["near"]]
        assert made["ours_speed_up"] == max(better)
        assert made["ratio"] * made["speed_up"] == pytest.approx(made["ours_speed_up"])
    front = sorted((r["speed_up"], near(r)) for r in with_plane(rows) if r["front"])
    assert front
    for (slow, fine), (fast, coarse) in itertools.pairwise(front):
        assert (slow < fast and fine > coarse) or (slow, fine) == (fast, coarse)


def test_the_plane_joins_the_front() -> None:
    made = Report("peers", "T", COLUMNS, with_plane(ROWS), PLOT, {})
    picture = draw(made.document("c"))
    line = next(part for part in picture.splitlines() if "stroke-dasharray" in part)
    points = line.split('"')[1].split()
    assert len(points) == 5
    assert [float(p.split(",")[0]) for p in points] == sorted(float(p.split(",")[0]) for p in points)
    assert report(made).name == "peers_verdict"
    assert "stroke-dasharray" not in draw(report(made).document("c"))
