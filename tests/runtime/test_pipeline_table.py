"""The table of pipelines: the page is what the kept rows say, no row shows a fault, and the command makes the rows."""

from __future__ import annotations

import diffusers
import pytest

from tests.pipeline_table import CASES, COLUMNS, HEAD, PAGE, kept, rendered, row

RERUN = (pytest.param("WanVideoToVideoPipeline", marks=pytest.mark.slow), "AnimateDiffPipeline")


def test_the_page_shows_the_kept_rows() -> None:
    lines = PAGE.read_text().splitlines()
    start = lines.index(HEAD) + 2
    assert lines[start : start + len(kept())] == rendered(kept())
    assert [name for name in CASES if name in kept()] == list(kept())


@pytest.mark.parametrize("name", RERUN)
def test_a_row_is_what_the_command_finds(name: str) -> None:
    assert row(CASES[name]) == kept()[name]


def test_no_row_shows_a_fault() -> None:
    """Nothing raw, nothing that differs from the pipeline itself, no call taken for another step."""
    cells = [(name, column, found[column]) for name, found in kept().items() for column in COLUMNS]
    assert [cell for cell in cells if cell[2].startswith(("RAW", "WRONG"))] == []


def test_every_pipeline_for_videos_has_a_row() -> None:
    """Every pipeline that diffusers exports and whose output is frames of a video."""
    named = {name.partition(",")[0] for name in CASES}
    assert sorted(_for_videos() - named) == []


def _for_videos() -> set[str]:
    words = ("Video", "World", "AnimateDiff", "LTX", "Wan", "SkyReels", "CogVideo", "Helios", "AnyFlow", "Mochi")
    names = (name for name in vars(diffusers)["_import_structure"]["pipelines"] if name.endswith("Pipeline"))
    return {name for name in names if any(word in name for word in words)}
