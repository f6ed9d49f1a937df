"""What prose names exists: classes, functions, fields, errors, options, verbs and files of docstrings and pages."""

from __future__ import annotations

from functools import cache

import pytest

from tests.house.tree import DOCS, PACKAGE, ROOT, modules
from tests.house.vocabulary import docstrings, prose, unknown, words, words_of_tests

# Values and files that a page makes up as an example, or quotes from another program.
QUOTED = {
    "CONTRIBUTING.md": {"feat", "fix", "docs/errors/MCxxxx.md"},
    "CHANGELOG.md": {"TextMate"},
    "docs/benchmarks.md": {"dce0600bde8b", "transformer_motion"},
    "docs/cli.md": {"flop_counter"},
    "docs/editors/index.md": {"GitHub", "TextMate"},
    "mccompile/lsp/textmate.py": {"TextMate"},
    "docs/magi1.md": {"B_distill", "zstd", "fp32_precision", "_quant", "prev_chunks_scale", "structure"},
    "docs/errors/MC0105.md": {"GiB", "KiB"},
    "docs/errors/MC0803.md": {"torchinductor"},
    "docs/decisions/two-probes.md": {"s33", "s92"},
    "mccompile/capture/facts.py": {"s33", "s92"},
    "mccompile/models/magi/text.py": {"DeepFloyd"},
}  # fmt: skip


@cache
def found_in_docstrings() -> set[tuple[str, str]]:
    return {
        (module.place, found.name)
        for module in modules().values()
        for place, text in docstrings(module)
        for found in unknown(text, place, module.path.parent, words())
    }


@cache
def found_in_pages() -> set[tuple[str, str]]:
    return {
        (place, found.name)
        for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"))
        for place in [str(page.relative_to(ROOT))]
        for found in unknown(prose(page.read_text()), place, page.parent, all_words())
    }


QUOTES = {(place, name) for place, names in QUOTED.items() for name in names}


def test_docstrings_name_what_exists() -> None:
    assert sorted(found_in_docstrings() - QUOTES) == []


def test_pages_name_what_exists() -> None:
    assert sorted(found_in_pages() - QUOTES) == []


def test_nothing_is_quoted_in_vain() -> None:
    assert sorted(QUOTES - found_in_docstrings() - found_in_pages()) == []


def all_words() -> frozenset[str]:
    return words() | words_of_tests()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Compiles it. Raises PlanErrors and LoweringError.", ["raises PlanErrors", "PlanErrors"]),
        ("A BranchWarehouse holds it.", ["BranchWarehouse"]),
        ("The field `buffers_of_nothing` is empty.", ["buffers_of_nothing"]),
        ("`mccompile discover` finds it, `mccompile check` checks it.", ["mccompile discover", "discover"]),
        ("`mccompile generate --no-such-option` runs.", ["--no-such-option"]),
        ("See `lowering/nowhere.py` and `lowering/errors.py`.", ["lowering/nowhere.py"]),
    ],
)
def test_a_name_of_nothing_is_seen(text: str, names: list[str]) -> None:
    assert [found.name for found in unknown(text, "page.md", PACKAGE, words())] == names


def test_what_exists_is_not_reported() -> None:
    text = "A CompiledModel raises NoClock; `compile(model, policy)` and `--set` and `policy/bind.py`, `torch.export`."
    assert list(unknown(text, "page.md", PACKAGE, words())) == []
