"""The language server, driven over its protocol: one process for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mccompile.language.fmt import format_policy
from mccompile.language.load import find_policy, load_policy
from mccompile.language.parse import parse
from mccompile.resources import shipped_policies
from tests.lsp.conversation import Conversation, Text

GOOD = """policy mine for wan {
  # é 😀 marks that count as one and as two
  param threshold = 0.10 in 0.01..0.50

  signal drift = rel_l1(modulation) | polynomial("wan2.1_1.3b_ret")

  phase warmup for 5 steps { compute }
  phase cache              { reuse chunk while accumulate(drift) < threshold }

  layers blocks[*] { keep residual }
}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Conversation]:
    made = Conversation()
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.policy"


def test_what_it_can_do(server: Conversation) -> None:
    able = server.capabilities
    for name in ("hover", "completion", "definition", "references", "rename", "documentFormatting", "codeLens"):
        assert able[f"{name}Provider"], name


# ---- problems ----------------------------------------------------------------------------------------------
def test_problems_come_and_go_while_typing(server: Conversation, file: Path) -> None:
    text = Text(server, file, GOOD)
    assert text.problems() == []
    text.change(GOOD.replace("(drift) <", "(drifd) <"))
    problem = next(p for p in text.problems() if p["code"] == "MC0201")
    assert (text.at(problem["range"]), problem["severity"]) == ("drifd", 1)
    assert "did you mean `drift`?" in problem["message"]
    text.change(GOOD)
    assert text.problems() == []


def test_several_problems_and_a_text_that_is_no_policy(server: Conversation, file: Path) -> None:
    text = Text(server, file, GOOD.replace("rel_l1(", "rel_11(").replace("< threshold", "< treshold"))
    assert {problem["code"] for problem in text.problems()} == {"MC0201", "MC0202", "MC0228"}
    text.change("policy torn {")
    assert [problem["code"] for problem in text.problems()] == ["MC0103"]
    text.change("")
    assert [problem["code"] for problem in text.problems()] == ["MC0103"]


def test_places_are_counted_in_utf_16(server: Conversation, file: Path) -> None:
    """The mark outside of the basic plane stands before the word on its line."""
    text = Text(server, file, GOOD.replace("  phase cache ", "  phase cache# 😀 not yet\n "))
    assert text.problems() == []
    text.change('policy m { signal s = polynomial(1, "😀") phase a { reuse step while rel_l1(modulatio) < 0.1 } }')
    assert "modulatio" in [text.at(problem["range"]) for problem in text.problems()]


def test_a_quick_fix_mends_the_text(server: Conversation, file: Path) -> None:
    text = Text(server, file, GOOD.replace("< threshold", "< treshold"))
    problem = next(p for p in text.problems() if p["code"] == "MC0201")
    (action,) = text.ask("codeAction", range=problem["range"], context={"diagnostics": [problem]})
    assert text.edited(action["edit"]["changes"][text.uri]) == GOOD
    other = {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 3}}
    assert text.ask("codeAction", range=other, context={"diagnostics": []}) == []


def test_an_error_of_a_base_stands_where_the_base_is_named(server: Conversation, tmp_path: Path) -> None:
    (tmp_path / "base.policy").write_text(GOOD.replace("< threshold", "< treshold"))
    text = Text(server, tmp_path / "user.policy", 'policy user extends "base.policy" { param threshold = 0.2 }')
    problem = next(p for p in text.problems() if p["code"] == "MC0201")
    assert text.at(problem["range"]) == 'extends "base.policy"'
    assert problem["message"].startswith("base.policy:8:")


# ---- what a word is ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("thresh¦old = 0.10", ["**param** `threshold`: a number, 0.1 in 0.01..0.5"]),
        ("signal dr¦ift", ["one number per chunk", "known before the first frame", "reads `modulation`",
                           "added to `account`"]),
        ("phase ca¦che", ["static, once the model's timestep embedding is known"]),
        ("rel_¦l1", ["rel_l1(of, then = before(of), over = chunk)", "mean|a - b|"]),
        ("modula¦tion", ["**source**", "known before the run"]),
        ("keep resi¦dual", ["blocks[*]: keep residual, what the blocks add to their input"]),
        ("reu¦se chunk", ["each cell is reused while the condition holds"]),
    ],
)  # fmt: skip
def test_hover(server: Conversation, file: Path, place: str, says: list[str]) -> None:
    text = Text(server, file, GOOD.replace(place.replace("¦", ""), place, 1))
    found = text.at_cursor("hover")
    for words in says:
        assert words in found["contents"]["value"]
    assert text.at(found["range"]) in place.replace("¦", "")


def test_hover_knows_the_rules_of_regions(server: Conversation, tmp_path: Path) -> None:
    text = Text(server, tmp_path / "apart.policy", """policy apart {
  signal dr¦ift = rel_l1(modulation)
  phase all { front: reuse chunk while accumulate(drift, into = debt) < 0.1 }
  layers front = blocks[*] { keep residual }
}
""")
    assert "added to `debt`" in text.at_cursor("hover")["contents"]["value"]


WINDOW = """policy far {
  param reach = 3 in 1..9
  phase all { compute every 2 steps }
  layers blocks[*] { keep residual }
  cache { window: reach chunks }
}
"""


def test_a_window_is_explained_and_its_parameter_renamed(server: Conversation, tmp_path: Path) -> None:
    text = Text(server, tmp_path / "far.policy", WINDOW.replace("window:", "win¦dow:"))
    assert text.problems() == []
    told = text.at_cursor("hover")["contents"]["value"]
    assert "`cache { window: 5 chunks }`: attention reads" in told
    assert "here attention reads the keys of the last `reach` chunks" in told
    text = Text(server, tmp_path / "far.policy", WINDOW.replace("rea", "rea¦", 1))
    renamed = text.edited(text.at_cursor("rename", newName="far_back")["changes"][text.uri])
    assert renamed == WINDOW.replace("reach", "far_back")


PICKS = """policy far {
  param weight = 7% in 1%..99%
  signal relevance = weight * attention(key) - (1 - weight) * redundancy(key)
  phase all { compute every 2 steps }
  layers blocks[*] { keep residual }
  cache { window: 2 chunks  keys: top 3 chunks by relevance }
}
"""


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("keys¦:", "here of the chunks between it reads as many keys as 3 chunks hold, the best by `relevance`"),
        ("by rele¦vance", "one number per key; of the chunks between"),
        ("redun¦dancy", "how like a key of older chunks is"),
    ],
)
def test_picked_keys_are_explained(server: Conversation, tmp_path: Path, at: str, told: str) -> None:
    text = Text(server, tmp_path / "far.policy", PICKS.replace(at.replace("¦", ""), at))
    assert text.problems() == []
    assert told in text.at_cursor("hover")["contents"]["value"]


def test_hover_of_nothing(server: Conversation, file: Path) -> None:
    assert Text(server, file, GOOD.replace("policy mine", "policy mi¦ne")).at_cursor("hover") is None


@pytest.mark.parametrize(
    ("text", "some", "none"),
    [
        ("policy a {\n  ¦\n}", ["param", "signal", "phase", "layers"], ["rel_l1", "vote"]),
        ("policy a {\n  signal s = ¦\n}", ["rel_l1", "modulation", "sigma"], ["phase"]),
        ("policy a {\n  param t = 0.1 in 0..1\n  phase p { reuse step while ¦", ["t", "accumulate"], ["layers"]),
        ("policy a {\n  phase p { ¦ }\n}", ["compute", "reuse chunk while", "at most"], ["param"]),
        ('policy a {\n  signal s = polynomial(x, "¦', ["wan2.1_1.3b"], ["rel_l1"]),
        ("policy a {\n  signal s = rel_l1(latent, over = ¦", ["step", "chunk", "frame", "token"], []),
        ("policy a {\n  cache { ¦", ["dtype: ", "budget: ", "window: ", "sink: ", "keys: "], ["pending: "]),
        ("policy a {\n  cache { window: ¦", ["5 chunks", "none"], ["dtype: "]),
        ("policy a {\n  cache { dtype: ¦", ["float8", "bfloat16"], ["dtype: "]),
        ("policy a extends ¦", ["motioncache", "teacache"], ["param"]),
        ("¦", ["policy"], ["param"]),
    ],
)
def test_completion(server: Conversation, file: Path, text: str, some: list[str], none: list[str]) -> None:
    found = {item["label"] for item in Text(server, file, text).at_cursor("completion")["items"]}
    assert set(some) <= found
    assert not set(none) & found


# ---- names -------------------------------------------------------------------------------------------------
def test_definition_here_and_in_a_base(server: Conversation, tmp_path: Path) -> None:
    text = Text(server, tmp_path / "here.policy", GOOD.replace("< threshold", "< thres¦hold"))
    found = text.at_cursor("definition")
    assert (text.at(found["range"]), found["range"]["start"]["line"]) == ("threshold", 2)
    (tmp_path / "base.policy").write_text(GOOD)
    user = 'policy user extends "base.policy" { signal slow = dr¦ift * 2 phase cache { reuse chunk while slow < 1 } }'
    found = Text(server, tmp_path / "user.policy", user).at_cursor("definition")
    assert found["uri"] == (tmp_path / "base.policy").as_uri()
    assert found["range"]["start"] == {"line": 4, "character": 9}


def test_functions_of_the_policy_and_of_a_library(server: Conversation, tmp_path: Path) -> None:
    (tmp_path / "lib.policy").write_text("policy lib { function far(x, limit = 0.1) = max(x - limit, 0) }")
    policy = GOOD.replace("\n\n", '\n  use "lib.policy"\n  function double(x) = 2 * x\n\n', 1)
    policy = policy.replace("rel_l1(modulation) |", "rel_l1(modulation) | far() | double() |")

    def at(place: str) -> Text:
        return Text(server, tmp_path / "mine.policy", policy.replace(place.replace("¦", ""), place, 1))

    assert Text(server, tmp_path / "mine.policy", policy).problems() == []
    assert "stands for `2 * x`" in at("dou¦ble()").at_cursor("hover")["contents"]["value"]
    assert "function far(x, limit = 0.1)" in at("fa¦r()").at_cursor("hover")["contents"]["value"]
    assert at("fa¦r()").at_cursor("definition")["uri"] == (tmp_path / "lib.policy").as_uri()
    text = at("dou¦ble(x)")
    changes = text.at_cursor("rename", newName="twice")["changes"][text.uri]
    assert [text.at(edit["range"]) for edit in changes] == ["double", "double"]
    assert at("function double(¦x)").at_cursor("rename", newName="y") is None  # a name within the function alone
    found = {item["label"] for item in at("while ¦accumulate").at_cursor("completion")["items"]}
    assert {"far", "double"} <= found
    assert "limit = " in {item["label"] for item in at("far(¦)").at_cursor("completion")["items"]}


def test_rename_changes_every_place_and_no_other(server: Conversation, file: Path) -> None:
    written = GOOD.replace("accumulate(drift)", "accumulate(drift, into = drift)").replace("signal dr", "signal dr¦")
    text = Text(server, file, written)
    assert text.at(text.at_cursor("prepareRename")) == "drift"
    renamed = text.edited(text.at_cursor("rename", newName="speed")["changes"][text.uri])
    assert renamed == text.text.replace("signal drift", "signal speed").replace("(drift,", "(speed,")
    assert load_policy(renamed).phases == load_policy(renamed).phases
    assert len(text.at_cursor("references", context={"includeDeclaration": True})) == 2


@pytest.mark.parametrize("name", ["sigma", "phase", "two words", "3x"])
def test_rename_to_what_can_be_no_name(server: Conversation, file: Path, name: str) -> None:
    assert Text(server, file, GOOD.replace("signal dr", "signal dr¦")).at_cursor("rename", newName=name) is None


# ---- layout and plan ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_formatting(server: Conversation, file: Path, ends: str) -> None:
    ugly = GOOD.replace("  phase warmup", "phase   warmup").replace("\n", ends)
    text = Text(server, file, ugly)
    options = {"tabSize": 2, "insertSpaces": True}
    (edit,) = text.ask("formatting", options=options)
    assert edit["newText"] == format_policy(parse(find_policy(GOOD)))
    text.change(edit["newText"])
    assert text.ask("formatting", options=options) == []
    text.change("policy torn {")
    assert text.ask("formatting", options=options) == []


def test_the_plan_beside_the_text(server: Conversation, file: Path) -> None:
    text = Text(server, file, GOOD)
    found = {text.at(lens["range"]): lens["command"]["title"] for lens in text.ask("codeLens")}
    assert found == {
        "mine": "in 50 steps: computes 5, leaves 45 to the run",
        "warmup": "steps 0..4: computes 5",
        "cache": "steps 5..49: leaves 45 to the run",
    }
    text.change("policy torn {")
    assert text.ask("codeLens") == []


def test_every_shipped_policy_has_no_problem(server: Conversation, tmp_path: Path) -> None:
    for name in shipped_policies():
        text = Text(server, tmp_path / f"{name}.policy", find_policy(name).text)
        assert text.problems() == [], name
        assert text.ask("codeLens")
