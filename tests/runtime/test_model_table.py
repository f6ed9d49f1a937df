"""The table of docs/models.md has a row for every family, and the command makes its rows."""

from __future__ import annotations

from tests.model_table import ALL, PAGE, row


def written() -> dict[str, str]:
    lines = PAGE.read_text().splitlines()
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}


def test_a_row_is_what_the_command_finds() -> None:
    assert row(ALL["toy"]) == written()["toy"]
