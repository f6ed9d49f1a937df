"""Golden files: `--update-golden` rewrites them; a missing golden fails, and an orphan fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Golden = Callable[[Path, str], None]


@pytest.fixture
def golden(update_golden: bool) -> Golden:
    """Compares a text with the golden file at a path, or writes it there."""

    def compare(path: Path, text: str) -> None:
        if update_golden:
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"golden {path} is missing: write it with --update-golden and read it"
        assert text == path.read_text(encoding="utf-8")

    return compare
