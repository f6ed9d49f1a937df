"""Every code has a class, a page whose example is true, and a golden; nothing is left over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.pages import (
    ErrorPage,
    UnknownCode,
    explain_code,
    page_codes,
    page_path,
    read_page,
    with_output,
)
from mccompile.diagnostics.render import render
from mccompile.diagnostics.source import Source
from mccompile.language.errors import error_classes
from mccompile.language.load import load_policy

ERRORS = Path(__file__).parent.parent / "errors"
CODES = tuple(error_classes())
GOLDENS = sorted(ERRORS.glob("MC0[12]*.policy"))


def refusal(text: str, name: str, folder: Path) -> str:
    """What is said about a policy that lies in `folder` as `name`."""
    with pytest.raises(PolicyError) as refused:
        load_policy(Source(name, text, (folder / name).resolve()))
    return render(refused.value.diagnostics)


def test_codes_pages_and_goldens_are_the_same_set() -> None:
    of_language = {code for code in page_codes() if code.startswith(("MC01", "MC02"))}
    assert of_language == set(CODES)
    assert {path.name.split("_")[0] for path in GOLDENS} == set(CODES)


def test_each_code_has_one_class() -> None:
    for code, class_ in error_classes().items():
        assert class_.code == code
        assert class_.title
        assert class_.title[0] != class_.title[0].upper() or class_.title.startswith(("{", "`"))
        assert not class_.title.endswith(".")


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden(path: Path, golden: Callable[[Path, str], None]) -> None:
    text = refusal(path.read_text(encoding="utf-8"), path.name, ERRORS)
    code = path.name.split("_")[0]
    assert f"error[{code}]" in text
    golden(path.with_suffix(".err"), text)


def test_no_golden_is_orphaned() -> None:
    expected = {path.with_suffix(".err") for path in GOLDENS}
    assert set(ERRORS.glob("MC0[12]*.err")) == expected


@pytest.mark.parametrize("code", CODES)
def test_page_refused_and_output(code: str, tmp_path: Path, update_golden: bool) -> None:
    page = read_page(code)
    path = tmp_path / "example.policy"
    path.write_text(page.refused, encoding="utf-8")
    text = refusal(page.refused, path.name, tmp_path)
    if update_golden:
        page_path(code).write_text(with_output(page, text), encoding="utf-8")
        page = read_page(code)
    assert page.output == text
    assert text.count("error[") == 1
    assert text.startswith(f"error[{code}]")


@pytest.mark.parametrize("code", CODES)
def test_page_mended(code: str, tmp_path: Path) -> None:
    page = read_page(code)
    assert page.code == code
    load_policy(Source("example.policy", page.mended, tmp_path / "example.policy"))


def test_explain_takes_either_case_and_names_the_nearest() -> None:
    assert explain_code("mc0201") == explain_code("MC0201")
    with pytest.raises(UnknownCode, match="did you mean MC02"):
        explain_code("MC0299")


def test_a_page_without_its_blocks_is_refused() -> None:
    page = ErrorPage("MC0201", "", "```policy\na\n```\n```text\nb\n```\n", "a\n", "b\n", "")
    assert with_output(page, "c\n") == "```policy\na\n```\n```text\nc\n```\n"
