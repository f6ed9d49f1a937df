"""What a command is doing is told in a file and a pipe too: one line for each stage, graph, and part of a run."""

from __future__ import annotations

import re

import pytest

from mccompile.cli.progress import Lines, display


def test_a_pipe_gets_a_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with display() as shown:
        assert isinstance(shown, Lines)
        with shown.stage("capture the model"):
            inside = capsys.readouterr().err
        shown.compiled("block 0, rows", 1, 3, 2.5)
        told = shown.task("vanilla")
        for step in range(10):
            told(step + 1, 10)
        shown.task("load the model")(1, 1)
    after = capsys.readouterr()
    assert re.fullmatch(r"\[ +\d+\.\d s\] capture the model\n", inside)
    assert after.out == ""
    assert [line.partition("] ")[2] for line in after.err.splitlines()] == [
        "compiled block 0, rows, 1 of 3 graphs", "vanilla", "vanilla: step 3 of 10", "vanilla: step 5 of 10",
        "vanilla: step 8 of 10", "vanilla: step 10 of 10", "load the model",
    ]  # fmt: skip
