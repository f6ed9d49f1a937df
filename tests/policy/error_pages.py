"""Error pages of MC03xx: what a page says, and running what it shows.

A page has three fenced blocks: the refused text, the output, the mended text. The first and the last are a
policy, with the flags of its run in the line above (With `--set threshold=0.2 --steps 8`:), or the text of an IR.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from policy_cases import STATIC, grid_of

from mccompile.cli.options import chosen
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.policy.bind import bind
from mccompile.policy.choosing import load_chosen
from mccompile.policy.evaluate import static_changes
from mccompile.policy.groups import bounds_of
from mccompile.policy.standing import sound_plan
from mccompile.policy.text import read

FOLDER = Path(__file__).parents[2] / "docs" / "errors"
_FENCE = re.compile(
    r"(?:^With `(?P<flags>[^`]*)`:\n\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
_FLAG = re.compile(r"--steps (\d+)|--set (\w+)=(\S+)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, the parameters and the steps of its run, and its text."""

    kind: str
    values: Mapping[str, float | str]
    steps: int
    body: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page; 50 steps where it says nothing."""
    found = []
    for m in _FENCE.finditer(text):
        flags = _FLAG.findall(m["flags"] or "")
        steps = [int(n) for n, _, _ in flags if n]
        values = dict(chosen(f"{name}={value}") for _, name, value in flags if name)
        found.append(Block(m["kind"], values, steps[0] if steps else 50, m["body"]))
    return found


def outcome(block: Block) -> str:
    """What the compiler says of a block: its diagnostics, or nothing."""
    try:
        shown = block.kind == "ir"
        if shown:
            policy, values = read(block.body), {}
        else:
            found = load_chosen(Source.of_text(block.body, "example.policy"), block.values)
            policy, values = found.policy, found.numbers
        tables = dict.fromkeys(static_changes(policy, STATIC), (0.05,) * block.steps)
        for bound in bounds_of(bind(policy, values)).values():
            sound_plan(bound, grid_of(block.steps), tables, STATIC)
    except PolicyError as error:
        return str(error).lstrip("\n")
    return ""
