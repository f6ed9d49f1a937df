"""The pages of MAGI-1's errors show what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.blocks import Shell, run_page

PAGES = sorted((Path(__file__).parents[2] / "docs" / "errors").glob("MC072[1-4].md"))


def test_the_blocks_of_the_error_pages_run(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    try:
        # One interpreter for all of them: importing torch takes longer than every block.
        run = {page.stem: run_page(page.read_text(), page.name, shell) for page in PAGES}
    finally:
        shell.close()
    assert run == {"MC0721": 2, "MC0722": 1, "MC0723": 1, "MC0724": 2}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_its_three_parts(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.stem}: ")
    assert text.index("## Refused") < text.index("## Mended")
