"""The record of a real run of the embedded model: what was seen of it, and that looking changes nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mccompile import api
from mccompile.generate.compare import last_call, run_with
from mccompile.generate.flops import count, count_by_row, prices_of
from mccompile.runtime.compiled import CompiledModel
from mccompile.studio.report.page import page_data
from mccompile.studio.report.reading import read_run
from mccompile.studio.report.record import Record, Way, as_bytes
from mccompile.studio.report.recorded import record_of, unseen, watch
from tests.generate.conftest import Small, small  # noqa: F401  # the fixture

POLICY = """policy watched {
  param threshold = 0.5 in 0.01..9

  signal drift  = rel_l1(latent, over = chunk)
  signal motion = frame_diff(block_output) | min_max(floor = 60%)

  phase warm for 1 steps { compute }
  phase fine             { reuse token while accumulate(drift * motion) < threshold }

  layers blocks[*] { keep residual }
  chunks { pending: skip  finished: keep }
}
"""


def silent(done: int, total: int) -> None:
    """Is told the steps."""


def compiled(of: Small) -> CompiledModel:
    model = api.compile(of.pipe, POLICY, backend="eager", captured=of.captured)
    model.undo()
    return model


@cache
def recorded(of: int, thumbnails: bool) -> Record:
    """A run, watched. of: the place of the fixture in `_FIXTURES`, for a cache needs what can be hashed."""
    given = _FIXTURES[of]
    model = compiled(given)
    watch(model, thumbnails)
    with last_call(model) as call:
        done = run_with(given.pipe, model, given.call, 0, silent)
    prices = prices_of(model, call)
    flops = count_by_row(model, model.events, prices)
    assert sum(flops) == pytest.approx(count(model, model.events, prices))
    way = Way("watched", "watched", done.seconds, 0.5, None, (0.1,) * len(flops), flops)
    return record_of(model, (way,), as_bytes([done.video]), {}, 12)


_FIXTURES: dict[int, Small] = {}


@pytest.fixture
def record(small: Small) -> Record:  # noqa: F811
    _FIXTURES[0] = small
    return recorded(0, thumbnails=True)


def test_every_step_has_its_prediction(record: Record) -> None:
    """The last one is the finished frame, as near as a small codec draws it; the first one is not."""
    ran = {(e.chunk, e.step) for e in record.events if e.phase}
    assert record.thumbnails.keys() == ran
    assert record.story.undrawn == ""
    chunks, steps = 1 + max(c for c, _ in ran), 1 + max(s for _, s in ran)
    video = record.videos[0].astype(int)
    for chunk in range(chunks):
        frame = video[round((4 * chunk + 2) * (len(video) - 1) / (4 * chunks - 1))]
        first, last = (np.abs(record.thumbnails[chunk, s] - frame).mean() for s in (0, steps - 1))
        assert last < 12
        assert last < first


def test_the_story_is_told(record: Record, tmp_path: Path) -> None:
    story, calls = record.story, {(e.row, e.branch) for e in record.events}
    assert {(c.row, c.branch) for c in story.calls} == calls
    assert all(call.kept > 0 for call in story.calls)
    assert [s.action for s in story.plan] == ["compute", *["dynamic"] * 3]
    assert [(t.account, t.phase, t.values) for t in story.thresholds] == [("account", "fine", (0.5,) * 4)]
    assert [(r.first, r.last, r.keep) for r in story.regions] == [(0, 5, "residual")]
    assert story.weighed == "motion"
    assert record.weights.keys() <= calls
    measured = [c for call in story.calls for c in call.chunks if c.predicted == "dynamic"]
    assert measured
    assert {name for c in measured for name, _ in c.signals} == {"drift", "motion"}
    assert {name for c in measured for name, _ in c.accounts} == {"account"}
    assert 0 < story.watching < record.ways[0].seconds
    for name, write in record.files().items():
        write(tmp_path / name)
    data = page_data(read_run(tmp_path))
    assert data["surprises"] == []
    assert data["thumbnails"] is not None


def test_a_resumed_run_says_from_where_it_was_seen(record: Record) -> None:
    assert not any("resumed" in said for said in record.story.fallbacks)
    whole = record.story.calls
    later = [call for call in whole if call.row > whole[0].row + 1]
    (said,) = unseen(record.events, later)
    assert said.startswith(f"the run was resumed at step {later[0].row} of the schedule: accounts, signals and bytes")


def test_looking_changes_nothing(record: Record, small: Small) -> None:  # noqa: F811
    plain = run_with(small.pipe, compiled(small), small.call, 0, silent)
    assert np.array_equal(as_bytes([plain.video])[0], record.videos[0])
    without = recorded(0, thumbnails=False)
    assert np.array_equal(without.videos[0], record.videos[0])
    assert (dict(without.thumbnails), without.story.undrawn) == ({}, "they were not asked for")
    assert without.story.calls == record.story.calls
