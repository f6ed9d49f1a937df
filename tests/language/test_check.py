"""The checker: what it accepts, what it infers, and that every error is said once and all at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.ir import Granularity
from mccompile.language.coefficients import coefficient_sets
from mccompile.language.load import LARGEST, find_policy, load_policy
from mccompile.language.parse import parse
from mccompile.resources import shipped_policies

REST = "  layers blocks[*] { keep residual }\n}"


def checked(body: str) -> ir.PolicyIR:
    return load_policy(Source.of_text(f"policy p {{\n{body}\n{REST}"))


def codes(text: str | Path | Source) -> list[str]:
    with pytest.raises(PolicyError) as refused:
        load_policy(text if isinstance(text, Path | Source) else Source.of_text(text))
    return [diagnostic.code for diagnostic in refused.value.diagnostics]


def in_signal(expr: str) -> str:
    """A policy whose one rule uses the expression as a signal."""
    return f"policy p {{ param t = 0 in -99..99 signal s = {expr} phase x {{ reuse token while s < t }} {REST}"


@pytest.mark.parametrize(
    ("expr", "granularity"),
    [
        ("rel_l1(modulation)", Granularity.CHUNK),
        ("rel_l1(latent, over = step)", Granularity.STEP),
        ("rel_l1(latent, over = frame) + 1", Granularity.FRAME),
        ("frame_diff(latent) * sigma", Granularity.TOKEN),
        ("frame_diff(latent) | mean(to = frame) | largest(to = step)", Granularity.STEP),
        ("table([1, 2])", Granularity.CHUNK),
        ("rel_l1(latent, over = frame) | polynomial([1, 0])", Granularity.FRAME),
        ("max(rel_l1(modulation), frame_diff(embedded))", Granularity.TOKEN),
        ("1 - similarity(embedded, stride = 3)", Granularity.TOKEN),
    ],
)
def test_granularity(expr: str, granularity: Granularity) -> None:
    (signal,) = load_policy(Source.of_text(in_signal(expr))).signals
    assert signal.granularity is granularity


@pytest.mark.parametrize(
    "expr",
    ["step + fraction", "step * 50%", "step / step + sigma + 50%", "-frame_diff(latent) ^ 2", "min(sigma, 2)"],
)
def test_units_that_fit(expr: str) -> None:
    load_policy(Source.of_text(in_signal(expr)))


@pytest.mark.parametrize(
    ("expr", "fits"),
    [
        *((expr, False) for expr in ("f", "n + f", "n - f", "max(n, f)", "min(f, n)", "remainder(n, f)")),
        *((expr, True) for expr in ("f * n + n", "f / n + n", "n * 50% + n", "50% * n - n", "2 * n")),
        *((expr, False) for expr in ("n * 50% + f", "50% * n + f", "n + 50%")),
    ],
)
def test_steps_and_frames_are_not_added_or_compared(expr: str, fits: bool) -> None:
    """Where two units cancel, the result has none; a percentage scales the other operand, whose unit stays.

    Other errors than that of units are of no concern here: nothing but constants is compared.
    """
    params = "param n = 3 steps in 1..9 param f = 2 frames in 1..9"
    text = f"policy p {{ {params} phase x {{ reuse chunk while {expr} < n }} {REST}"
    assert ("MC0223" not in codes(text)) == fits


def test_late_signals_and_those_that_read_them() -> None:
    policy = checked(
        "signal m = frame_diff(block_output) | min_max()  signal w = m * rel_l1(modulation)\n"
        "phase x { reuse token while accumulate(w) < 1 }"
    )
    assert {signal.name: signal.late for signal in policy.signals} == {"m": True, "w": False}


def test_signals_stand_in_an_order_in_which_they_can_be_computed() -> None:
    policy = checked(
        "signal c = b + a  signal b = a * 2  signal a = rel_l1(latent)\nphase x { reuse chunk while c < 1 }"
    )
    assert [signal.name for signal in policy.signals] == ["a", "b", "c"]


def test_all_errors_at_once_each_once() -> None:
    text = in_signal("missing + missing") + " "
    assert codes(text) == ["MC0201", "MC0201"]
    text = "policy p { param a = 2 in 0..1 param b = 1 in 1..0 phase x { compute every a steps } phase y { compute } }"
    assert codes(text) == ["MC0220", "MC0228", "MC0221", "MC0242", "MC0231"]


def test_a_poisoned_expression_is_silent() -> None:
    found = codes(in_signal("min_max(nothing, floor = 2) * frame_diff(modulation) + 1"))
    assert found == ["MC0201", "MC0224", "MC0212"]
    assert codes(in_signal("nothing | polynomial([1]) | clamp(0, 1) | min_max(floor = 10%)")) == ["MC0201"]


def test_errors_come_in_the_order_of_the_text() -> None:
    with pytest.raises(PolicyError) as refused:
        load_policy(Path(__file__).parent.parent / "errors" / "MC0204_words.policy")
    places = [diagnostic.span.start for diagnostic in refused.value.diagnostics if diagnostic.span]
    assert places == sorted(places)
    assert len(places) == 8


@pytest.mark.parametrize(
    ("mask", "steps"),
    [
        ("compute steps 0..2, 4", "11101"),
        ("compute steps 0, 3.. of 6", "100111"),
        ("compute steps 0..1 of 4", "1100"),
        ("compute 2 reuse 1 compute 1 reuse 2", "110100"),
    ],
)
def test_masks(mask: str, steps: str) -> None:
    (phase,) = checked(f"phase x {{ {mask} }}").phases
    assert isinstance(phase.rule, ir.StepMask)
    assert "".join("1" if step else "0" for step in phase.rule.compute) == steps


def test_phases_that_interrupt_may_follow_one_that_never_ends() -> None:
    checked(
        "phase a { compute every 2 steps }  phase b while sigma < 0.2 { compute }\n"
        "phase c for last 1 step { compute }"
    )


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("blocks[0..7] { compute } layers blocks[-8..] { keep output }", []),
        ("blocks[2..-3] { keep output } layers blocks[-2..] { compute } layers blocks[0..1] { compute }", []),
        ("blocks[..3] { keep output } layers blocks[3] { compute }", ["MC0240"]),
        ("blocks[5..-1] { keep output } layers blocks[9] { compute }", ["MC0240"]),
    ],
)
def test_layers(layers: str, expected: list[str]) -> None:
    text = f"policy p {{ phase x {{ compute every 2 steps }} layers {layers} }}"
    if expected:
        assert codes(text) == expected
    else:
        wheres = [region.where for region in load_policy(Source.of_text(text)).regions]
        firsts = [where.first % 1000 for where in wheres if isinstance(where, ir.Blocks)]
        assert firsts == sorted(firsts)


@pytest.mark.parametrize("bounds", ["0%..150%", "-10%..90%"])
def test_the_whole_range_of_a_parameter_lies_within_the_bounds(bounds: str) -> None:
    rule = "reuse token while frame_diff(latent) < 1 vote p of frames"
    text = f"policy p {{ param p = 50% in {bounds} phase x {{ {rule} }} {REST}"
    assert codes(text) == ["MC0226"]


# ---- extends ----


def test_extends_overrides_in_place(tmp_path: Path) -> None:
    base, mine = load_policy("motioncache"), load_policy("motioncache_fast")
    assert mine.params[0].default == 0.15
    assert (mine.params[0].low, mine.params[0].high) == (base.params[0].low, base.params[0].high)
    assert mine.params[1:] == base.params[1:]
    assert (mine.phases, mine.signals, mine.regions, mine.chunks) == (
        base.phases,
        base.signals,
        base.regions,
        base.chunks,
    )


def test_extends_a_file_beside_it_and_names_both_files(tmp_path: Path) -> None:
    (tmp_path / "base.policy").write_text("policy base { param n = 3 in 1..9 phase x { compute every n steps }" + REST)
    mine = tmp_path / "mine.policy"
    mine.write_text('policy mine extends "base.policy" { param n = 4 }')
    assert load_policy(mine).params[0].default == 4
    mine.write_text('policy mine extends "base.policy" { param n = 40 }')
    with pytest.raises(PolicyError, match=r"(?s)mine\.policy:1:47.*base\.policy:1:30"):
        load_policy(mine)


def test_a_cycle_of_two_is_found(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.policy").write_text(f'policy {name} extends "{other}.policy" {{ }}')
    assert codes(tmp_path / "a.policy") == ["MC0250"]


def test_a_circle_is_named_by_those_that_are_in_it(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "b")):
        (tmp_path / f"{name}.policy").write_text(f'policy {name} extends "{other}.policy" {{ }}')
    with pytest.raises(PolicyError, match=r"(?s)`b` extends itself.*c\.policy:1:10.*`b` extends `c` extends `b`"):
        load_policy(tmp_path / "a.policy")


def test_a_chain_without_end_is_cut(tmp_path: Path) -> None:
    for n in range(40):
        (tmp_path / f"p{n}.policy").write_text(f'policy p{n} extends "p{n + 1}.policy" {{ }}')
    assert codes(tmp_path / "p0.policy") == ["MC0110"]


FOREIGN = ("fifo.policy", "link.policy", "/dev/zero", "../other.policy", "a\0b.policy", "missing", "~/.netrc")


@pytest.mark.parametrize("name", FOREIGN)
def test_only_policies_beside_a_policy_are_read(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    os.mkfifo(folder / "fifo.policy")
    (tmp_path / "other.policy").write_text("secret word")
    (folder / "link.policy").symlink_to(tmp_path / "other.policy")
    (folder / "mine.policy").write_text(f'policy mine extends "{name}" {{ }}')
    with pytest.raises(PolicyError) as refused:
        load_policy(folder / "mine.policy")
    assert [diagnostic.code for diagnostic in refused.value.diagnostics] == ["MC0252"]
    assert "secret" not in str(refused.value)


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "long.policy"
    path.write_text("# " + LARGEST * "x" + "\npolicy p { phase all { compute } }")
    assert codes(path) == codes(Path("/dev/zero")) == ["MC0108"]


def test_the_work_grows_with_the_text() -> None:
    """Twice as many declarations, twice as many steps: counted, not timed."""

    def work(count: int) -> int:
        one = "param p{i} = 1 in 0..2 signal s{i} = sigma phase w{i} while 0.{i:05d} <= sigma < 0.{j:05d} {{ compute }}"
        layers = " layers blocks[{i}] {{ compute }}"
        text = "\n".join((one + layers).format(i=i, j=i + 1) for i in range(count))
        calls = 0

        def count_calls(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count_calls)
        try:
            codes(f"policy p {{\n{text}\nphase x {{ compute }}\n}}")
        finally:
            sys.setprofile(None)
        return calls

    work(10)
    assert work(400) < 2.5 * work(200)


def test_errors_of_a_base_are_shown_in_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.policy").write_text("policy base { phase x { compute every none steps }" + REST)
    mine = tmp_path / "mine.policy"
    mine.write_text('policy mine extends "base.policy" { }')
    with pytest.raises(PolicyError, match=r"--> base\.policy:1:39"):
        load_policy(mine)
    (tmp_path / "base.policy").write_text("policy base {")
    assert codes(mine) == ["MC0103"]


def test_what_a_base_declares_may_fall_out_of_use() -> None:
    text = "policy p extends motioncache { phase coarse for 3 steps { compute } phase fine { compute every 2 steps } }"
    policy = load_policy(Source.of_text(text))
    assert policy.signals == ()
    assert [param.name for param in policy.params] == ["warmup"]
    assert [phase.name for phase in policy.phases] == ["warmup", "coarse", "fine"]


# ---- loading ----


def test_policies_by_name_path_and_text(tmp_path: Path) -> None:
    text = find_policy("exact").text
    path = tmp_path / "mine.policy"
    path.write_text(text)
    assert load_policy("exact") == load_policy(text) == load_policy(path) == load_policy(str(path))
    assert find_policy("exact").name == "policies/exact.policy"


@pytest.mark.parametrize("name", ["motioncach", "./motioncache.policy", "no/such.policy", ""])
def test_missing_policies(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyError) as refused:
        find_policy(name)
    assert [diagnostic.code for diagnostic in refused.value.diagnostics] == ["MC0109"]
    assert "error[MC0109]" in str(refused.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.policy"
    path.write_bytes(b"policy \xff")
    assert codes(path) == ["MC0108"]


def test_coefficient_sets_are_finite_and_sourced() -> None:
    sets = coefficient_sets()
    assert len(sets) >= 20
    for found in sets.values():
        assert found.source
        assert all(abs(value) < 1e6 for value in found.values)
        fewest = 28 if found.kind == "table" else 2 if found.fitted else 5
        assert fewest <= len(found.values) <= 50


def test_every_policy_is_named_as_its_file() -> None:
    for name in shipped_policies():
        assert parse(find_policy(name)).name.text == name
