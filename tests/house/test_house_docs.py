"""Pages do what they say: their blocks run, their links lead somewhere, what they list is what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.blocks import RUN, PageError, Shell, blocks, commands, matches, pages, run_page
from tests.house.tree import DOCS, PACKAGE, ROOT


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


RUNNING = [page for page in pages() if any(b.language in RUN for b in blocks(page.read_text()))]


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, shell: Shell) -> None:
    assert run_page(page.read_text(), str(page.relative_to(ROOT)), shell)


def test_the_pages_that_teach_run() -> None:
    teaching = {"README.md", "tour.md", "policies.md", "runtime.md", "capture.md", "language.md"}
    assert teaching <= {page.name for page in RUNNING}


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", outside, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page to files or headings that do not exist; the web is not asked."""
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", outside) + re.findall(r'(?:src|href)="([^"]+)"', outside):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path.read_text())):
            broken.append(f"{page.relative_to(ROOT)}: {target}")
    return broken


def all_pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]


def test_links_lead_somewhere() -> None:
    assert [link for page in all_pages() for link in broken_links(page, page.read_text())] == []


def test_every_page_is_reached_from_the_index() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)(?:#[^)]*)?\)", page.read_text())
        todo += [path for link in links if (path := (page.parent / link).resolve()).exists() and path not in seen]
    wanted = {page for page in DOCS.rglob("*.md") if page.parent.name != "errors"}
    assert sorted(str(page.relative_to(ROOT)) for page in wanted - seen) == []


def test_every_policy_is_explained() -> None:
    text = (DOCS / "policies.md").read_text()
    shipped = sorted(path.stem for path in (ROOT / "policies").glob("*.policy"))
    headings = re.findall(r"^### `(\w+)`", text, flags=re.MULTILINE)
    assert sorted(headings) == shipped


def test_every_package_is_described_in_the_architecture() -> None:
    text = (DOCS / "architecture.md").read_text()
    packages = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert [name for name in packages if f"`{name}/`" not in text] == []


def test_the_readme_begins_with_the_two_commands_and_ci_runs_the_second() -> None:
    first = blocks((ROOT / "README.md").read_text())[0]
    lines = [line.split("#")[0].strip() for line in first.text.splitlines() if line.strip()]
    assert lines == ["make demo", "make test"]
    assert (ROOT / "README.md").read_text().index("```") < 400
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith(lines[1])


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("a\nb", "a  \nb\n", True),
        ("a\n...\nc", "a\nb\nb\nc", True),
        ("a\n...\nc", "a\nc", True),
        ("a ... c", "a b c", True),
        ("a\n...", "a", True),
        ("...\nc", "a\nb\nc", True),
        ("a ... c", "a b\nc", False),
        ("a\n...\nd", "a\nb\nc", False),
        ("a.c", "abc", False),
    ],
)
def test_outputs_are_compared(expected: str, actual: str, same: bool) -> None:
    assert matches(expected, actual) is same


def test_commands_of_a_console_block() -> None:
    assert list(commands("$ a \\\n  b\nout\n$ c\n")) == [("a \\\n  b", "out\n"), ("c", "")]


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ false\n```\n",
        "```console\n$ echo one\ntwo\n```\n",
        "```python\nx = 1\nassert x == 2\n```\n",
        "```python\nprint(1)\n```\n```output\n2\n```\n",
        "```policy a.policy refused\npolicy right { phase all { compute } }\n```\n",
        "```policy\npolicy wrong { phase all { compute } layers blocks[*] { keep residual } }\n```\n",
    ],
)
def test_a_page_that_lies_is_seen(text: str, shell: Shell) -> None:
    with pytest.raises(PageError, match=r"page\.md:1"):
        run_page(text, "page.md", shell)


def test_a_page_keeps_its_names_and_files(shell: Shell) -> None:
    text = "```python\nx = 2\n```\n```python\nprint(x)\n```\n```output\n2\n```\n```console\n$ touch a\n$ ls a\na\n```\n"
    assert run_page(text, "page.md", shell) == 3


def test_a_link_to_nowhere_is_seen() -> None:
    page = DOCS / "index.md"
    assert broken_links(page, "[a](nowhere.md) [b](index.md#nothing) [c](https://example.org)") != []
    assert len(broken_links(page, "[a](nowhere.md) [b](architecture.md#nothing)")) == 2
