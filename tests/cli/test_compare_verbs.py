"""diff and prove."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Shell


def test_diff_of_a_policy_with_itself(shell: Shell) -> None:
    text = shell("diff", "motioncache", "motioncache", "--steps", 12).out
    assert "Both decide alike in all 12 steps." in text
    assert "change in work  none" in text


def test_diff_names_the_first_step_and_both_reasons(shell: Shell) -> None:
    result = shell("diff", "fixed_interval", "taylorseer", "--steps", 8, "--json")
    found = json.loads(result.out)
    assert found["first"] == 6
    assert [found["steps"][6][which]["action"] for which in "ab"] == ["compute", "reuse"]
    assert [found["steps"][6][which]["why"] for which in "ab"] == [f"every {n} steps of the phase" for n in (3, 4)]
    assert found["sections"] == ["layers"]
    assert {pair["relation"] for pair in found["steps"][:6]} == {"alike"}


def test_diff_of_what_data_decides(shell: Shell) -> None:
    """The same rule on the same data is alike; another threshold may differ from the first dynamic step on."""
    found = json.loads(shell("diff", "fbcache", "fbcache", "--set-b", "threshold=0.2", "--steps", 5, "--json").out)
    assert [pair["relation"] for pair in found["steps"]] == ["alike", *["may differ"] * 4]
    assert found["change"] == {"least": -4, "most": 4}


def test_diff_refuses_what_a_policy_cannot_run(shell: Shell) -> None:
    result = shell("diff", "step_mask", "teacache", "--steps", 40)
    assert (result.status, result.out) == (1, "")
    assert "error[MC0305]" in result.err


def test_prove_has_three_answers(shell: Shell) -> None:
    proved = shell("prove", "motioncache", "never-reuses", "steps", "0..4", "--steps", "6..8")
    assert (proved.status, proved.out.splitlines()[1]) == (0, "looked at: runs of 6 to 8 steps")
    refuted = shell("prove", "teacache", "implies", "teacache", "--set-b", "threshold=0.2", "--json")
    found = json.loads(refuted.out)
    assert (refuted.status, found["outcome"]) == (1, "refuted")
    last = found["schedule"]["step"]
    assert [actions[last] for actions in found["schedule"]["actions"]] == ["reuse", "compute"]
    open_ = shell("prove", "top_motion", "implies", "top_waiting", "--steps", "8")
    assert (open_.status, open_.out.split(":")[0]) == (1, "unknown")


def test_prove_names_what_a_schedule_measures(shell: Shell, tmp_path: Path) -> None:
    """By the words of the policy: of means over steps, what they are means of."""
    file = tmp_path / "uneven.policy"
    file.write_text("""policy uneven {
  phase first for 3 steps { compute }
  phase cache             { reuse chunk while average(deviation(latent), over = 3) < 0.1 and magnitude(latent) < 2 }
  layers blocks[*] { keep residual }
}
""")
    refuted = shell("prove", str(file), "never-reuses", "steps", "3..5", "--steps", "6..8")
    assert refuted.status == 1
    assert "deviation(latent)" in refuted.out
    assert "magnitude(latent)" in refuted.out


def test_prove_of_a_claim_that_names_nothing(shell: Shell) -> None:
    for words in (("never-reuses", "0..4"), ("never-reuses", "steps", "4..0"), ("implies", "teacache", "exact")):
        result = shell("prove", "motioncache", *words)
        assert (result.status, result.out) == (2, "")
        assert "error[MC0705]" in result.err
    assert shell("prove", "motioncache", "implies", "exact", "--steps", "0..3").status == 2
