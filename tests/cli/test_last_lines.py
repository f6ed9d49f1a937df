"""What must be known of a run is the last thing that `mccompile generate` says."""

from __future__ import annotations

from typing import cast

import pytest

from mccompile.cli import generate
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.summary import Summary


class Ran:
    """A model after a run that acted, with a note of its plan and a call whose results were not finite."""

    def summary(self) -> Summary:
        return Summary("teacache", 8, True, 0.5, {}, {}, ("threshold 0.1 has no influence",), True, True, odd=1)


def test_every_warning_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    generate._last_line(cast(CompiledModel, Ran()))
    assert capsys.readouterr().out.splitlines() == [
        "policy teacache: threshold 0.1 has no influence",
        "the results of 1 calls were not finite; nothing of them was kept",
    ]
