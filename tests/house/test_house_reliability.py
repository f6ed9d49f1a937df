"""docs/reliability.md is what tests/house/reliability.py writes, and every test that it names exists."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from tests.house.reliability import PAGE, PROMISES, ROOT, WRONG, page


@pytest.mark.parametrize("test", [*(row.test for row in PROMISES), *(test for _, _, test in WRONG)])
def test_a_test_that_the_page_names_exists(test: str) -> None:
    file, _, function = test.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not function or f"\ndef {function}(" in text


def test_the_page_has_the_promises_and_some_cases_of_each() -> None:
    written = PAGE.read_text(encoding="utf-8")
    number = re.compile(r"\b\d+ (\|\n|cases were run)")
    assert number.sub(r"0 \1", written) == number.sub(r"0 \1", page(defaultdict(int)))
    promises, _, _ = written.partition("\n## ")
    assert " cases were run" in promises
    assert " 0 |\n" not in promises
