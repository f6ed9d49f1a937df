"""The table of policies has a row for each policy, and what it says of a policy's text is true."""

from __future__ import annotations

import json
from pathlib import Path

from mccompile.language.load import load_policy
from tests.house.policies import FILE, known_by, merged, read, write
from tests.house.readme import table


def test_the_table_is_of_the_shipped_policies() -> None:
    assert [*read().values()] == merged(read()), "run `python -m tests.house.policies`"


def test_when_a_policy_decides() -> None:
    said = [known_by(load_policy(name)) for name in ("fora", "magcache", "teacache", "fbcache", "top_motion")]
    assert said == ["clock", "clock", "timestep", "data", "data"]


def test_what_was_measured_stays_with_the_text(tmp_path: Path) -> None:
    rows = merged({})
    first = rows[0]
    first |= {"skyreels_speed_up": 2.0, "wan_psnr": 30.0}
    stale = {**rows[1], "text": "another", "skyreels_speed_up": 3.0}
    kept = merged({str(first["policy"]): first, str(stale["policy"]): stale})
    assert kept[0] == first
    assert "skyreels_speed_up" not in kept[1]
    path = tmp_path / "policies.json"
    write(kept, "2026-01-01", path)
    write(kept, None, path)
    assert read(path)[str(first["policy"])] == first
    assert json.loads(path.read_text())["date"] == "2026-01-01"
    shown = table(json.loads(path.read_text()))
    assert f"| {first['policy']} | {first['lines']} | {first['known']} | 2.00 | 30.0 |" in shown
    assert "kept bytes" not in shown  # a column without a number


def test_the_file_is_there() -> None:
    assert FILE.exists()
