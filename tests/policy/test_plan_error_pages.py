"""Each MC03 code has a class and a page, and what the page shows is what happens."""

from __future__ import annotations

import pytest
from error_pages import FOLDER, blocks, outcome

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.policy import errors

CLASSES = {
    thing.code: thing
    for thing in vars(errors).values()
    if isinstance(thing, type) and issubclass(thing, Diagnostic) and thing is not Diagnostic
}


def test_each_code_has_one_class_and_one_page() -> None:
    assert sorted(CLASSES) == sorted(path.stem for path in FOLDER.glob("MC03*.md"))
    assert len({c.__name__ for c in CLASSES.values()}) == len(CLASSES)


@pytest.mark.parametrize("code", sorted(CLASSES))
def test_a_page_shows_what_happens(code: str) -> None:
    text = (FOLDER / f"{code}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {code}: ")
    refused, output, mended = blocks(text)
    assert output.kind == "text"
    assert outcome(refused) == output.body
    assert output.body.startswith(f"error[{code}]: ")
    assert outcome(mended) == ""
