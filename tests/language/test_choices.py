"""`choose`: the first alternative holds, another one is picked; all are checked; an extension settles a choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.ir import Granularity
from mccompile.language.fmt import format_policy
from mccompile.language.load import find_policy, load_choices, load_policy
from mccompile.language.parse import parse
from mccompile.policy.choosing import load_chosen
from mccompile.policy.text import read, show

GOLDEN = Path(__file__).parent.parent / "golden" / "ast" / "choices.policy"
BY_HAND = """policy choices {{
  param threshold = 0.10 in 0.01..0.50
  signal slow = rel_l1(modulation)
  signal fast = rel_l1(latent)
  {early}
  phase cache {{ reuse {cell} while accumulate({measure}) < threshold }}
  {layers}
}}"""
EARLY = "param early = 2 steps in 1..9\n phase early for early steps { compute }"
WHOLE, FIRST = "layers blocks[*] { keep residual }", "layers blocks[0] { compute } layers blocks[1..] { keep residual }"


def by_hand(cell: str, measure: str, split: str) -> ir.PolicyIR:
    """The policy as one would write it without choices."""
    text = BY_HAND.format(
        early=EARLY if split == "first" else "", cell=cell, measure=measure,
        layers=FIRST if split == "first" else WHOLE,
    )  # fmt: skip
    other = "fast" if measure == "slow" else "slow"
    return load_policy("\n".join(line for line in text.splitlines() if f"signal {other}" not in line))


@pytest.mark.parametrize("cell", ["chunk", "token"])
@pytest.mark.parametrize("measure", ["slow", "fast"])
@pytest.mark.parametrize("split", ["whole", "first"])
def test_each_combination_is_the_policy_that_one_would_write(cell: str, measure: str, split: str) -> None:
    found = load_policy(GOLDEN, {"cell": cell, "measure": measure, "split": split})
    assert found == by_hand(cell, measure, split)
    assert read(show(found)) == found


def test_the_first_alternatives_hold() -> None:
    found = load_choices(GOLDEN)
    assert found == {"cell": ("chunk", "token"), "measure": ("slow", "fast"), "split": ("whole", "first")}
    assert load_policy(GOLDEN) == by_hand("chunk", "slow", "whole")
    assert load_policy(GOLDEN, {"measure": "fast"}) == by_hand("chunk", "fast", "whole")


def test_comments_stay_in_their_alternatives() -> None:
    text = (
        "policy p {\n"
        "  choose split = whole {  # one\n"
        "    # two\n"
        "    layers blocks[*] { keep residual }\n"
        "    # three\n"
        "  } | first {  # four\n"
        "    layers blocks[1..] { keep residual }\n"
        "  }  # five\n"
        "\n"
        "  phase a { compute every 2 steps }\n"
        "}\n"
    )
    assert format_policy(parse(Source.of_text(text))) == text


def test_an_extension_settles_a_choice(tmp_path: Path) -> None:
    (tmp_path / "base.policy").write_text(GOLDEN.read_text())
    own = tmp_path / "own.policy"
    own.write_text('policy own extends "base.policy" { choose cell = token  choose split = first | whole }')
    assert load_choices(own) == {"cell": ("token",), "measure": ("slow", "fast"), "split": ("first", "whole")}
    found = load_policy(own)
    assert found.phases == by_hand("token", "slow", "first").phases
    assert load_policy(own, {"split": "whole"}).regions == by_hand("token", "slow", "whole").regions


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cell": "tokn"}, "did you mean `token`"),
        ({"cell": 2.0}, "no alternative `2` of a choice `cell`"),
        ({"threshold": "high"}, "`threshold` is none of its choices"),
    ],
)
def test_a_wrong_pick_is_told(values: dict[str, float | str], says: str) -> None:
    with pytest.raises(PolicyError, match=says) as refused:
        load_chosen(GOLDEN, values)
    assert [d.code for d in refused.value.diagnostics] == ["MC0310"]


def test_picks_and_numbers_are_told_apart() -> None:
    found = load_chosen(GOLDEN, {"cell": "token", "threshold": 0.2})
    rule = found.policy.phases[-1].rule
    assert isinstance(rule, ir.Reuse)
    assert rule.granularity is Granularity.TOKEN
    assert (found.picks, found.numbers) == ({"cell": "token"}, {"threshold": 0.2})
    with pytest.raises(ValueError, match="no alternative"):
        load_policy(GOLDEN, {"cell": "frame"})


def codes(text: str) -> list[str]:
    with pytest.raises(PolicyError) as refused:
        load_policy(text)
    return [d.code for d in refused.value.diagnostics]


def test_what_is_unused_in_every_alternative_is_an_error() -> None:
    text = find_policy(GOLDEN).text
    assert codes(text.replace("accumulate(measure)", "accumulate(slow)")) == ["MC0228"]
    assert codes(text.replace("  choose cell", "  signal idle = rel_l1(latent)\n  choose cell")) == ["MC0228"]


def test_names_are_given_once() -> None:
    body = "phase a { reuse cell while rel_l1(latent, over = step) < 0.1 } layers blocks[*] { keep residual }"
    assert codes(f"policy p {{ choose cell = step | chunk  choose cell = chunk | step  {body} }}") == ["MC0205"]
    assert codes(f"policy p {{ choose cell = step | chunk  signal cell = rel_l1(latent)  {body} }}") == ["MC0205"]
    assert codes(f"policy p {{ choose cell = step | step  {body} }}") == ["MC0205"]
    assert codes(f"policy p {{ choose before = step | chunk  choose cell = step | chunk  {body} }}") == ["MC0206"]
