"""The site shows every page: its hooks move links and fences, and its navigation is complete."""

from __future__ import annotations

import re
from pathlib import Path

from tests.house.site import OUTSIDE, PARTS, linked, listed, moved, plain
from tests.house.tree import DOCS, ROOT


def test_words_for_the_tests_are_dropped_from_fences() -> None:
    text = "```policy mine.policy refused\npolicy mine { }\n```\n  ```console\n  $ a ```b c\n  ```\n"
    assert plain(text) == text.replace(" mine.policy refused", "")


def test_links_lead_to_the_moved_pages() -> None:
    assert linked("[a](../CONTRIBUTING.md#tests) [b](language.md)") == "[a](contributing.md#tests) [b](language.md)"
    assert linked("[a](../../CHANGELOG.md)") == "[a](../changes.md)"
    assert moved("[a](docs/cli.md) [b](https://docs/x)") == "[a](cli.md) [b](https://docs/x)"


def test_errors_are_listed_by_part(tmp_path: Path) -> None:
    for code, title in (("MC0201", "an unknown name"), ("MC0401", "the model cannot be exported")):
        (tmp_path / f"{code}.md").write_text(f"# {code}: {title}\n\nText.\n")
    page = listed(sorted(tmp_path.glob("*.md")))
    assert "## Meaning\n\n| code | what it means |\n| --- | --- |\n| [MC0201](MC0201.md) | an unknown name |\n" in page
    assert page.endswith("## Capture\n\n| code | what it means |\n| --- | --- |\n| [MC0401](MC0401.md) |"
                         " the model cannot be exported |\n")  # fmt: skip


def test_every_error_has_a_part() -> None:
    assert {page.name[2:4] for page in (DOCS / "errors").glob("MC*.md")} <= set(PARTS)


def test_the_navigation_holds_every_page_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    shown = re.findall(r"([\w/-]+\.md)$", text[text.index("\nnav:") : text.index("\nnot_in_nav:")], flags=re.MULTILINE)
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.parent.name != "errors"}
    assert sorted(shown) == sorted({*written, *OUTSIDE.values(), "errors/index.md"})
