"""The pages of docs/errors: an explanation, a refused policy, its error, and the mended policy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mccompile.diagnostics.diagnostic import nearest
from mccompile.resources import data_folder

_TITLE = re.compile(r"# (MC\d{4}): (.+)")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """One page. `refused`, `output` and `mended` are the blocks of its example, each ending in a line end."""

    code: str
    title: str
    text: str
    refused: str
    output: str
    mended: str


class UnknownCode(LookupError):
    """A code that no page explains."""


def page_codes() -> tuple[str, ...]:
    """Every code that has a page, sorted."""
    return tuple(sorted(path.stem for path in data_folder("errors").glob("MC[0-9][0-9][0-9][0-9].md")))


def page_path(code: str) -> Path:
    """The file of a page; `UnknownCode`, naming the nearest code, if there is none."""
    known = page_codes()
    if code.upper() not in known:
        meant = nearest(code, known)
        hint = f", did you mean {meant}?" if meant else ": codes look like MC0201"
        raise UnknownCode(f"no error has the code `{code}`{hint}")
    return data_folder("errors") / f"{code.upper()}.md"


def explain_code(code: str) -> str:
    """The text of the page of `code` (in either case); `UnknownCode` if there is none."""
    return page_path(code).read_text(encoding="utf-8")


def read_page(code: str) -> ErrorPage:
    """The page taken apart; `ValueError` if it has not the form of a page with a policy example."""
    text = explain_code(code)
    title = _TITLE.match(text)
    blocks = [match.groups() for match in _BLOCK.finditer(text)]
    if title is None or [language for language, _ in blocks] != ["policy", "text", "policy"]:
        raise ValueError(f"{code}.md needs a title and the blocks policy (refused), text, policy (mended)")
    return ErrorPage(title[1], title[2], text, *(block for _, block in blocks))


def with_output(page: ErrorPage, output: str) -> str:
    """The text of the page with `output` in its second block."""
    blocks = list(_BLOCK.finditer(page.text))
    return page.text[: blocks[1].start(2)] + output + page.text[blocks[1].end(2) :]
