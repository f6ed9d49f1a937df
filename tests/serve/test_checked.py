"""What the page says of a text: errors at their places, parameters, the plan, and that it reads nothing outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from mccompile.resources import data_folder, shipped_policies
from mccompile.studio.serve.checked import MOST_TEXT, Knob, Stretch, TextPlace, check_text, source_of
from mccompile.studio.serve.errors import RequestRefused
from mccompile.studio.serve.texts import Texts
from tests.serve.fakes import GRID, TEXT


def test_a_policy_has_knobs_and_a_plan(tmp_path: Path) -> None:
    found = check_text(source_of(TEXT, "mine", tmp_path), {"n": 5.0}, GRID)
    assert (found.policy, found.problems, found.steps) == ("mine", (), 10)
    assert found.knobs == (Knob("n", 2.0, 1.0, 9.0, True, ""),)
    assert found.stretches == (
        Stretch(0, 0, "all", "compute"), Stretch(1, 4, "all", "reuse"), Stretch(5, 5, "all", "compute"),
        Stretch(6, 9, "all", "reuse"),
    )  # fmt: skip


def test_values_are_in_the_parameters_own_units(tmp_path: Path) -> None:
    text = (data_folder("policies") / "motioncache.policy").read_text()
    found = check_text(source_of(text, "mine", tmp_path), {"floor": 20.0, "warmup": 3.0}, GRID)
    assert [k.default for k in found.knobs if k.unit == "%"] == [60.0]
    assert found.stretches[0] == Stretch(0, 2, "warmup", "compute")
    assert {s.action for s in found.stretches[1:]} == {"dynamic"}
    wrong = check_text(source_of(text, "mine", tmp_path), {"floor": 120.0}, GRID)
    assert [p.code for p in wrong.problems] == ["MC0302"]
    assert len(wrong.knobs) == 4


def test_regions_that_decide_apart_have_a_plan_each(tmp_path: Path) -> None:
    text = (data_folder("policies") / "deltadit.policy").read_text()
    found = check_text(source_of(text, "mine", tmp_path), {"interval": 3.0}, GRID)
    steps = {(s.region, s.action): [*range(s.first, s.last + 1)] for s in found.stretches if s.action == "reuse"}
    assert found.problems == ()
    assert {s.region for s in found.stretches} == {"front", "rear"}
    assert steps["front", "reuse"][0] >= 5 > steps["rear", "reuse"][-1]


def test_choices_are_picked_by_their_words(tmp_path: Path) -> None:
    text = "policy mine {\n  choose cell = chunk | token\n\n  phase warm for 2 steps { compute }\n" \
        "  phase all { reuse cell while step > 3 }\n\n  layers blocks[*] { keep residual }\n}\n"  # fmt: skip
    picks: tuple[dict[str, float | str], ...] = ({}, {"cell": "token"})
    for word in picks:
        found = check_text(source_of(text, "mine", tmp_path), word, GRID)
        assert [(c.name, c.words) for c in found.choices] == [("cell", ("chunk", "token"))]
        assert (found.problems, found.steps) == ((), 10)
    wrong = check_text(source_of(text, "mine", tmp_path), {"cell": "frame"}, GRID)
    assert [p.code for p in wrong.problems] == ["MC0310"]
    assert wrong.choices


def test_an_error_has_its_place_as_browsers_count(tmp_path: Path) -> None:
    """A character outside of the basic plane is two units of a browser's text."""
    text = "policy mine {\n  # \N{CLAPPER BOARD}\n  phase all { compte }\n}\n"
    problem = check_text(source_of(text, "mine", tmp_path), {}, GRID).problems[0]
    start = text.index("compte") + 1
    assert problem.place == TextPlace(3, 15, start, start + len("compte"))
    assert problem.text.startswith(f"error[{problem.code}]: {problem.message}\n  --> mine.policy:3:15\n")


def test_nothing_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    """Neither by a path nor by a link; a policy beside it is read, and a shipped one."""
    folder = tmp_path / "own"
    folder.mkdir()
    secret = tmp_path / "secret.policy"
    secret.write_text("policy secret { phase all { compute } }")
    (folder / "link.policy").symlink_to(secret)
    (folder / "base.policy").write_text(TEXT.replace("mine", "base"))
    for base, code in (
        ('"../secret.policy"', "MC0252"), (f'"{secret}"', "MC0252"), ('"link.policy"', "MC0252"),
        ('"base.policy"', None), ("teacache", None),
    ):  # fmt: skip
        found = check_text(source_of(f"policy mine extends {base} {{ }}", "mine", folder), {}, GRID)
        assert [p.code for p in found.problems] == ([code] if code else []), base
        assert not any("secret {" in p.text for p in found.problems)
    assert Texts(folder).saved() == ("base",)
    for name in ("link", "../secret", "/etc/passwd", ""):
        with pytest.raises(RequestRefused):
            Texts(folder).read(name, shipped=False)


def test_a_text_has_a_limit_and_a_name(tmp_path: Path) -> None:
    for text, name, status in (("x" * (MOST_TEXT + 1), "mine", 413), (TEXT, "../mine", 400), (TEXT, "a/b", 400)):
        with pytest.raises(RequestRefused) as refused:
            source_of(text, name, tmp_path)
        assert refused.value.status == status


def test_texts_are_saved_and_never_lost_by_accident(tmp_path: Path) -> None:
    texts = Texts(tmp_path)
    assert texts.save("mine", TEXT, over=False).read_text() == TEXT
    texts.save("mine", TEXT, over=False)  # the same text
    with pytest.raises(RequestRefused, match="is there already"):
        texts.save("mine", "policy", over=False)
    assert texts.read("mine", shipped=False) == TEXT
    texts.save("mine", "policy", over=True)
    assert texts.read("mine", shipped=False) == "policy"
    outside = tmp_path.parent / f"{tmp_path.name}.txt"
    outside.write_text("kept")
    (tmp_path / "link.policy").symlink_to(outside)
    with pytest.raises(RequestRefused, match="no regular file"):
        texts.save("link", TEXT, over=True)
    assert outside.read_text() == "kept"
    assert texts.read(shipped_policies()[0], shipped=True).startswith("policy ")
