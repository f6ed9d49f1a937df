"""Prompts of a search: those that it sees, and those that are held out of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mccompile.generate.errors import PromptsUnusable
from mccompile.generate.prompts import prompt_lines

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
    seen = prompt_lines(path)
    if held_out is not None:
        return Prompts(seen, prompt_lines(held_out))
    if len(seen) < 2:
        raise PromptsUnusable(str(path), "it has one prompt, so that none is left to be held out")
    return split(seen)


def split(prompts: tuple[str, ...]) -> Prompts:
    """The last quarter held out, at least one."""
    held = max(1, len(prompts) // 4)
    return Prompts(prompts[:-held], prompts[-held:])
