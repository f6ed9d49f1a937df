"""Text forms: what is shown reads back, and what does not read is refused at its place."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import UNHURRIED, motioncache, policies

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.policy.plan_text import read_plan
from mccompile.policy.sexpr import DEEPEST
from mccompile.policy.text import read, show


@UNHURRIED
@given(policies)
def test_what_is_shown_reads_back(policy: ir.PolicyIR) -> None:
    text = show(policy)
    assert read(text) == policy
    assert show(read(text)) == text


def test_one_declaration_a_line() -> None:
    assert show(motioncache()).splitlines()[:4] == [
        "policy made_by_hand",
        "models []",
        'param threshold default=0.1 low=0.01 high=0.5 whole=false unit=""',
        "param warmup default=5.0 low=1.0 high=50.0 whole=true unit=steps",
    ]


def test_a_window_is_read_back_and_texts_from_before_there_were_windows_have_none() -> None:
    made = motioncache()
    window = ir.KeyWindow(ir.ParamRef("warmup"), ir.Const(1.0))
    wanted = replace(made, cache=replace(made.cache, window=window))
    assert show(wanted).endswith(" window=(key_window (param warmup) 1.0)\n")
    assert read(show(wanted)) == wanted
    assert show(made).endswith("cache dtype=auto residual=auto device=auto refresh_last=false\n")
    assert read(show(made)).cache.window is None


def test_picked_keys_are_read_back() -> None:
    made = motioncache()
    terms = (ir.KeyTerm("attention", 3, ir.ParamRef("floor")), ir.KeyTerm("redundancy", 0, ir.Const(-0.5)))
    keys = ir.KeyChoice(ir.Const(3.0), ir.KeySum(terms))
    wanted = replace(made, cache=replace(made.cache, keys=keys))
    assert show(wanted).endswith(
        " keys=(key_choice 3.0 (key_sum [(key_term measure=attention around=3 factor=(param floor)) "
        "(key_term measure=redundancy around=0 factor=-0.5)]))\n"
    )
    assert read(show(wanted)) == wanted
    assert read(show(made)).cache.keys is None


TEXT = show(motioncache())


@UNHURRIED
@given(st.integers(0, len(TEXT) - 1), st.sampled_from(["", "(", ")", "]", '"', "=", "x", "\n", "  "]))
def test_damaged_text_is_refused_and_never_crashes(at: int, put: str) -> None:
    damaged = TEXT[:at] + put + TEXT[at + 1 :]
    with contextlib.suppress(PolicyError):
        policy = read(damaged)
        assert read(show(policy)) == policy


@pytest.mark.parametrize("opened", ["[", "(", "(not "])
def test_brackets_without_end_are_refused(opened: str) -> None:
    """Seen: a policy in a bundle with a thousand of them ended in a RecursionError."""
    for reader in (read, read_plan):
        with pytest.raises(PolicyError, match=f"more than {DEEPEST} brackets are open here"):
            reader(f"policy x\nmodels {opened * 5000}")


@pytest.mark.parametrize(("number", "cause"), [(DEEPEST, "is expected"), (DEEPEST + 1, "brackets are open here")])
def test_so_many_brackets_may_be_open(number: int, cause: str) -> None:
    with pytest.raises(PolicyError, match=cause):
        read(f"policy x\nmodels {'[' * number}{']' * number}")


@pytest.mark.parametrize("name", ["none", "true", "false", "3"])
def test_a_name_that_reads_as_something_else_is_quoted(name: str) -> None:
    made = replace(motioncache(), name=name, models=(name,))
    assert show(made).splitlines()[:2] == [f'policy "{name}"', f'models ["{name}"]']
    assert read(show(made)) == made


def test_an_expression_is_read_as_deep_as_it_may_be() -> None:
    made = motioncache()
    rule = made.phases[-1].rule
    assert isinstance(rule, ir.Reuse)
    deep = rule.condition
    for _ in range(DEEPEST - 10):
        deep = ir.Apply("not", (deep,))
    phases = (*made.phases[:-1], replace(made.phases[-1], rule=replace(rule, condition=deep)))
    wanted = replace(made, phases=phases)
    assert read(show(wanted)) == wanted


@pytest.mark.parametrize(
    ("old", "new", "line", "cause"),
    [
        ("default=0.1 ", "default=soon ", 3, "a number is expected"),
        ("whole=false unit", "whole=0 unit", 3, "true or false is expected"),
        ("unit=steps", 'unit="\t"', 4, "a text in quotes is expected, written as in JSON"),
        ("unit=steps", 'unit="\\x"', 4, "a text in quotes is expected, written as in JSON"),
        ("made_by_hand", '"\x0b"', 1, "a text in quotes is expected, written as in JSON"),
        ("unit=steps", "unit=miles", 4, "one of '', steps, frames, % is expected"),
        (" low=0.01", "", 3, "`param` lacks low"),
        (" low=0.01", " low=0.01 low=0.02", 3, "not a field of `param`, or given twice"),
        ("(signal drift)", "(signal drift drift)", 10, "`signal` has 1 fields, not 2"),
        ("(lt (accumulate (signal drift) account)", "(lt", 10, "`lt` takes 2 arguments, not 1"),
        ("(accumulate", "(collect", 10, "`collect` cannot stand here"),
        ("span=(rest)", "span=(compute)", 11, "`compute` cannot stand here"),
        ("span=(rest)", "span=rest", 11, "a node in parentheses is expected"),
        ("span=(rest)", "span=(rest", 11, "`(` is not closed"),
        ("span=(rest)", "span=(rest))", 11, "closes nothing"),
        ("span=(rest)", "span=", 11, "a value is missing here"),
        ("span=(rest)", "span=()", 11, "a node in parentheses is expected"),
        ("span=(rest)", "span=[rest]", 11, "a node in parentheses is expected"),
        ("span=(rest)", "span=((rest))", 11, "a node in parentheses is expected"),
        ("models []", "(models) []", 2, "not a declaration of a policy IR"),
        ("models []", "text=models []", 2, "not a declaration of a policy IR"),
        ("models []", "models wan", 2, "a list in brackets is expected"),
        ("models []", "", 16, "`models` is missing"),
        ("models []", "models []\nmodels []", 3, "`models` is given twice"),
        ("models []", "cheese []", 2, "not a declaration of a policy IR"),
        ("made_by_hand", '"made', 1, "a quote is not closed"),
    ],
)
def test_an_error_names_place_and_cause(old: str, new: str, line: int, cause: str) -> None:
    assert old in TEXT
    with pytest.raises(PolicyError) as caught:
        read(TEXT.replace(old, new, 1))
    (found,) = caught.value.diagnostics
    assert found.span is not None
    assert (found.span.line, found.span_label()) == (line, cause)
    if new.startswith("cheese"):
        assert found.span.text == "cheese []"  # the whole line
    if "twice" in cause and new.startswith("models"):
        assert found.span.text == "models"  # the word, and not what follows it
