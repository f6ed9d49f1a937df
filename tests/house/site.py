"""What the documentation site makes of the pages: the hooks that mkdocs.yml names.

The pages are written for readers of the repository. Three things differ on the site. CONTRIBUTING.md and CHANGELOG.md
lie outside of docs/, so they are added as pages. The words after the language of a fence (```policy a.policy refused)
are for the tests, so they are dropped. The page that lists the errors by code is made from the titles of their pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
PARTS = {
    "01": "Syntax", "02": "Meaning", "03": "Binding and planning", "04": "Capture", "05": "Lowering", "06": "A run",
    "07": "Driving a pipeline", "08": "Compiled packages and bundles", "09": "Configurations of other tools",
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not files of docs/."""
    from mkdocs.structure.files import File  # the tests of this file run without mkdocs

    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, content=moved((ROOT / source).read_text())))
    pages = sorted((ROOT / "docs" / "errors").glob("MC*.md"))
    files.append(File.generated(config, "errors/index.md", content=listed(pages)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """The text of a page as the site shows it."""
    return linked(plain(markdown))


def plain(text: str) -> str:
    """The text with nothing but the language at the head of each fence."""
    return re.sub(r"^( *```\w+) [^`\n]*$", r"\1", text, flags=re.MULTILINE)


def linked(text: str) -> str:
    """The text with links to the pages that the site has moved (`../CONTRIBUTING.md`)."""
    for source, target in OUTSIDE.items():
        text = text.replace(f"](../{source}", f"]({target}").replace(f"](../../{source}", f"](../{target}")
    return text


def moved(text: str) -> str:
    """The text of a page of the repository's root, its links relative to docs/."""
    return re.sub(r"\]\(docs/", "](", text)


def listed(pages: list[Path]) -> str:
    """The page that lists the errors: a table per part of the compiler, a row per code."""
    lines = ["# Errors by code", "", "`mccompile explain CODE` prints the page of a code."]
    part = ""
    for page in pages:
        code, _, title = page.read_text().splitlines()[0].removeprefix("# ").partition(": ")
        if code[2:4] != part:
            part = code[2:4]
            lines += ["", f"## {PARTS[part]}", "", "| code | what it means |", "| --- | --- |"]
        lines.append(f"| [{code}]({page.name}) | {title} |")
    return "\n".join(lines) + "\n"
