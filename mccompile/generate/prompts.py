"""Files of prompts, a line each."""

from __future__ import annotations

import re
from pathlib import Path

from mccompile.generate.errors import PromptsUnusable

_LONGEST = 40


def prompt_lines(path: Path, remedy: str = "") -> tuple[str, ...]:
    """The prompts of a file. Empty lines and lines that begin with `#` say nothing.

    Raises PromptsUnusable (MC0741), with the remedy of a search unless another one is given.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsUnusable(str(path), str(error).lower(), remedy) from None
    found = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not found:
        raise PromptsUnusable(str(path), "it has no prompt", remedy)
    return found


def names_of(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """A file name for each prompt, without its suffix: its number, from 1, and its first words."""
    wide = len(str(len(prompts)))
    return tuple(f"{n:0{wide}}_{_slug(prompt)}".rstrip("_") for n, prompt in enumerate(prompts, 1))


def _slug(prompt: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")
    return words if len(words) <= _LONGEST else words[: _LONGEST + 1].rpartition("_")[0] or words[:_LONGEST]
