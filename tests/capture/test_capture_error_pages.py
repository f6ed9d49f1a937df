"""Each MC04 code has a class and a page; what a page refuses is refused with that text, what it mends is captured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mccompile.capture import CaptureError, errors

FOLDER = Path(__file__).parents[2] / "docs" / "errors"
CLASSES = {
    thing.code: thing
    for thing in vars(errors).values()
    if isinstance(thing, type) and issubclass(thing, CaptureError) and thing is not CaptureError
}


def test_each_code_has_one_class_and_one_page() -> None:
    assert sorted(CLASSES) == sorted(path.stem for path in FOLDER.glob("MC04*.md"))


@pytest.mark.parametrize("code", sorted(CLASSES))
def test_a_page_shows_what_happens(code: str) -> None:
    text = (FOLDER / f"{code}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {code}: {CLASSES[code].title}\n")
    (_, refused), (kind, output), (_, mended) = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert kind == "text"
    torch.set_num_threads(1)
    with pytest.raises(CLASSES[code]) as caught:
        exec(refused, {"__name__": "page"})  # the page is ours
    assert str(caught.value) == output.rstrip("\n")
    exec(mended, {"__name__": "page"})
