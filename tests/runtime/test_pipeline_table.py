"""The table of pipelines: the page is what the kept rows say, no row shows a fault, and the command makes the rows."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest

from tests.pipeline_table import CASES, COLUMNS, HEAD, PAGE, kept, rendered, row
from tests.pipes.left_out import OTHERS, SAME_MODEL, with_a_transformer
from tests.pipes.unets import ABSENT

RERUN = (pytest.param("WanVideoToVideoPipeline", marks=pytest.mark.slow), "AnimateDiffPipeline")


def test_the_page_shows_the_kept_rows() -> None:
    lines = PAGE.read_text().splitlines()
    start = lines.index(HEAD) + 2
    assert lines[start : start + len(rendered(kept()))] == rendered(kept())
    assert [name for name in CASES if name in kept()] == list(kept())


@pytest.mark.parametrize("name", RERUN)
def test_a_row_is_what_the_command_finds(name: str) -> None:
    assert row(CASES[name]) == kept()[name]


def test_no_row_shows_a_fault() -> None:
    """Nothing raw, nothing that differs from the pipeline itself, no call taken for another step."""
    cells = [(name, column, found[column]) for name, found in kept().items() for column in COLUMNS]
    assert [cell for cell in cells if cell[2].startswith(("RAW", "WRONG"))] == []


def test_every_pipeline_for_videos_has_a_row() -> None:
    """Every pipeline of diffusers whose output is a video is run, or has a reason."""
    named = {name.partition(",")[0] for name in (*CASES, *ABSENT)}
    assert sorted(for_videos() - named) == []


def for_videos() -> set[str]:
    """The pipelines of diffusers that return frames, by the text of their files."""
    folder = Path(diffusers.__file__).parent / "pipelines"
    made = re.compile(r"Output\(\s*frames=")
    files = (path.read_text(encoding="utf-8") for path in sorted(folder.rglob("pipeline_*.py")))
    parts = (part for text in files for part in re.split(r"^class ", text, flags=re.MULTILINE)[1:])
    return {part.partition("(")[0] for part in parts if made.search(part) and "Pipeline(" in part.partition("\n")[0]}


def test_every_pipeline_with_a_transformer_has_a_row_or_a_reason() -> None:
    """Those that are left out stand in one list, once each, and whatever diffusers has no longer stands in none."""
    rows = {name.partition(",")[0] for name in (*CASES, *ABSENT)}
    listed = [name for groups in (SAME_MODEL, OTHERS) for names in groups.values() for name in names]
    assert len(listed) == len(set(listed))
    assert rows.isdisjoint(listed)
    assert set(listed) == set(with_a_transformer()) - rows


def test_a_pipeline_that_is_left_out_for_another_one_has_its_transformer() -> None:
    classes = with_a_transformer()
    rows = {name.partition(",")[0] for name in CASES}
    for row_name, names in SAME_MODEL.items():
        assert row_name in rows
        assert {classes[name] for name in names} == {classes[row_name]}
    for name, reason in ABSENT.items():
        if reason.startswith("its transformer is that of "):
            assert classes[name] == classes[reason.removeprefix("its transformer is that of ")]
    own = OTHERS["it makes images, by a transformer that no pipeline for videos has"]
    assert {classes[name] for name in own}.isdisjoint({classes[name] for name in rows | set(ABSENT) if name in classes})
