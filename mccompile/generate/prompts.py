"""Files of prompts, a line each."""

from __future__ import annotations

from pathlib import Path

from mccompile.generate.errors import PromptsUnusable


def prompt_lines(path: Path) -> tuple[str, ...]:
    """The prompts of a file. Empty lines and lines that begin with `#` say nothing. Raises PromptsUnusable (MC0741)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsUnusable(str(path), str(error).lower()) from None
    found = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not found:
        raise PromptsUnusable(str(path), "it has no prompt")
    return found
