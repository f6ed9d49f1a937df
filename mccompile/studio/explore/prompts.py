"""Prompts of a search: those that it sees, and those that are held out of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mccompile.studio.explore.errors import PromptsUnusable

EMBEDDED = (
    "a red circle moving right over a slate texture",
    "a blue square moving up over a sand texture",
    "a green triangle moving left over a slate texture",
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """seen: what trials run on. held_out: what only emitted policies run on, afterwards."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


def read_prompts(path: Path, held_out: Path | None) -> Prompts:
    """The prompts of a file, a line each; without a second file its last quarter, at least one, is held out.

    Empty lines and lines that begin with `#` say nothing. Raises PromptsUnusable (MC0741).
    """
    seen = _lines(path)
    if held_out is not None:
        return Prompts(seen, _lines(held_out))
    if len(seen) < 2:
        raise PromptsUnusable(str(path), "it has one prompt, so that none is left to be held out")
    return split(seen)


def split(prompts: tuple[str, ...]) -> Prompts:
    """The last quarter held out, at least one."""
    held = max(1, len(prompts) // 4)
    return Prompts(prompts[:-held], prompts[-held:])


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsUnusable(str(path), str(error).lower()) from None
    found = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not found:
        raise PromptsUnusable(str(path), "it has no prompt")
    return found
