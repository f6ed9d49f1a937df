"""Masks that are drawn in a file: what the graph makes of them, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.render import render
from mccompile.diagnostics.source import Source
from mccompile.language.drawn import rectangles
from mccompile.language.load import load_policy
from mccompile.lowering.expressions import Leaves, evaluate

POLICY = """policy p {
  signal face = mask("masks.toml:face")
  phase all { reuse token while accumulate(rel_l1(latent) + face) < 0.5 }
  layers blocks[*] { keep residual }
}
"""


def loaded(drawn: str, folder: Path) -> ir.PolicyIR:
    (folder / "masks.toml").write_text(f"[mask.face]\nrows = {drawn}\n")
    return load_policy(Source("p.policy", POLICY, folder / "p.policy"))


@st.composite
def masks(draw: st.DrawFn) -> list[str]:
    width = draw(st.integers(1, 7))
    rows = draw(st.lists(st.text("#.", min_size=width, max_size=width), min_size=1, max_size=6))
    return rows if len({*"".join(rows)}) == 2 else ["#.", ".#"]


@settings(max_examples=40, deadline=None)
@given(masks(), st.integers(1, 9), st.integers(1, 9))
def test_a_token_belongs_to_it_where_its_centre_does(rows: list[str], height: int, width: int) -> None:
    """Of every rectangle of the frame, whatever the sizes of mask and frame are."""
    found = torch.zeros(height, width)
    for top, bottom, left, right in rectangles(rows):
        area = ir.Area((top, bottom), (left, right))
        leaves = Leaves({}, {}, {}, {}, {}, {}, {}, {}, places=torch.zeros(height, width))
        found += evaluate(area, leaves).reshape(height, width)  # no two of them meet
    for row in range(height):
        for column in range(width):
            down, across = (2 * row + 1) * len(rows) // (2 * height), (2 * column + 1) * len(rows[0]) // (2 * width)
            edge = (2 * row + 1) * len(rows) % (2 * height) == 0 or (2 * column + 1) * len(rows[0]) % (2 * width) == 0
            assert edge or found[row, column] == (rows[down][across] == "#")  # on an edge, rounding decides


def test_a_mask_of_a_file(tmp_path: Path) -> None:
    policy = loaded('["....", ".##.", ".##.", "#..."]', tmp_path)
    (face,) = policy.signals
    middle, corner = ir.Area((0.25, 0.75), (0.25, 0.75)), ir.Area((0.75, 1.0), (0.0, 0.25))
    assert face.expr == ir.Apply("max", (middle, corner))
    assert face.granularity == ir.Granularity.TOKEN


@pytest.mark.parametrize(
    ("drawn", "says"),
    [
        ("[]", "has no `rows`"),
        ("[1, 2]", "has no `rows`"),
        ('["#.", "#"]', "rows of different lengths"),
        ('["#o"]', "is drawn with `o`"),
        ('["##"]', "is the same everywhere"),
        (f'["{"#." * 200}"]', "more than 256 rows or columns"),
        (str(["#." * 20, ".#" * 20] * 10), "64 are the most: draw it coarser"),
        ('"#."', "has no `rows`"),
    ],
)
def test_what_is_no_mask(drawn: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as refused:
        loaded(drawn, tmp_path)
    said = render(refused.value.diagnostics)
    assert "MC0270" in said
    assert says in said


@pytest.mark.parametrize(("argument", "says"), [("[1, 2]", "a mask is drawn in a file"), ('"none"', "MC0209")])
def test_what_names_no_mask(argument: str, says: str, tmp_path: Path) -> None:
    text = POLICY.replace('"masks.toml:face"', argument)
    with pytest.raises(PolicyError) as refused:
        load_policy(Source("p.policy", text, tmp_path / "p.policy"))
    assert says in render(refused.value.diagnostics)
