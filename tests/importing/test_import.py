"""Configurations of other tools: the policy that comes of each, and the fate of every key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mccompile.importing import cache_dit, lightx2v, sglang, vllm_omni
from mccompile.importing.convert import TOOLS, Imported, import_config
from mccompile.importing.errors import ConfigError
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.evaluate import StaticMoment, evaluate
from mccompile.policy.flow import flow_grid
from mccompile.policy.planner import plan
from mccompile.policy.prove import Equivalent, prove
from tests.cli.conftest import Shell
from tests.cli.conftest import shell as shell
from tests.house.tree import DOCS

CONFIGS = Path(__file__).parent / "configs"


def imported(tmp_path: Path, values: object, name: str = "config.json") -> Imported:
    path = tmp_path / name
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return import_config(path)


def fates(found: Imported) -> dict[str, str]:
    return {note.key: note.fate for note in found.keys}


def same(found: Imported, shipped: str, **values: float) -> bool:
    """The policy is proved to be the shipped one with these parameters."""
    a, b = bind(load_policy(found.text), {}), bind(load_policy(shipped), values)
    return prove(a, Equivalent(b), [flow_grid(n) for n in (1, 9, 20)]).outcome == "proved"


@pytest.mark.parametrize("config", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_a_configuration_becomes_a_policy(config: Path, update_golden: bool) -> None:
    """The text beside it: what became of every key, and the policy, which the checker takes."""
    found = import_config(config)
    load_policy(found.text)
    keys = "".join(f"{note.fate}: {note.key}{f' ({note.note})' if note.note else ''}\n" for note in found.keys)
    golden = CONFIGS.parent / "policies" / f"{config.name}.txt"
    if update_golden:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(f"{found.tool}\n{keys}\n{found.text}")
    assert f"{found.tool}\n{keys}\n{found.text}" == golden.read_text()


def test_no_golden_text_is_left_over() -> None:
    texts = {path.name.removesuffix(".txt") for path in (CONFIGS.parent / "policies").iterdir()}
    assert texts == {path.name for path in CONFIGS.iterdir()}


# ---- meaning -----------------------------------------------------------------------------------------------
def test_dbcache_is_the_shipped_one(tmp_path: Path) -> None:
    given = {"Fn_compute_blocks": 2, "Bn_compute_blocks": 1, "max_continuous_cached_steps": 3}
    assert same(imported(tmp_path, {"cache_config": given}), "dbcache")
    assert not same(imported(tmp_path, {"cache_config": given | {"Bn_compute_blocks": 0}}), "dbcache")


def test_first_block_cache_is_the_shipped_one(tmp_path: Path) -> None:
    assert same(imported(tmp_path, "FirstBlockCacheConfig(threshold=0.08)", "pipe.py"), "fbcache")


def test_lightx2v_is_teacache(tmp_path: Path) -> None:
    found = import_config(CONFIGS / "lightx2v_tea.json")
    assert same(found, "teacache", threshold=0.26)


def test_a_static_mask_is_computed_as_it_says(tmp_path: Path) -> None:
    mask = [1, 0, 0, 1, 0, 1]
    given = {"steps_computation_mask": mask, "steps_computation_policy": "static", "max_warmup_steps": 0}
    bound = bind(load_policy(imported(tmp_path, given).text), {})
    made = plan(bound, flow_grid(6), {}, frozenset())
    assert [int(cell.action == "compute") for cell in made.cells] == mask


def test_sglang_and_vllm_have_defaults_of_their_own(tmp_path: Path) -> None:
    of_vllm = imported(tmp_path, {"cache_backend": "cache_dit"})
    of_sglang = imported(tmp_path, "SGLANG_CACHE_DIT_ENABLED=1\n", "server.env")
    assert load_policy(of_vllm.text).phases == load_policy(of_sglang.text).phases
    assert load_policy(of_vllm.text).params == load_policy(of_sglang.text).params
    assert {p.name: p.default for p in load_policy(of_vllm.text).params} == {"threshold": 0.24, "warmup": 4}


# ---- keys --------------------------------------------------------------------------------------------------
def known_keys() -> list[tuple[str, str]]:
    of_vllm = vllm_omni.TEA | vllm_omni.MAG | vllm_omni.SCM | vllm_omni.OTHER | cache_dit.KEYS
    tables = {"cache-dit": cache_dit.KEYS, "lightx2v": lightx2v.CACHING, "sglang": sglang.VARIABLES}
    return [(tool, key) for tool, keys in (tables | {"vllm-omni": of_vllm}).items() for key in sorted(keys)]


@pytest.mark.parametrize("tool", ["cache-dit", "lightx2v", "sglang", "vllm-omni"])
def test_every_key_of_a_tool_is_known_and_a_misspelt_one_is_not(tool: str, tmp_path: Path) -> None:
    """Null is the tool's default: the key is read, and never taken for an unknown one."""
    for key in [key for of, key in known_keys() if of == tool]:
        bases = {"vllm-omni": {"cache_backend": "cache_dit"}, "lightx2v": {"feature_caching": "NoCaching"}}
        base: dict[str, object] = dict(bases.get(tool, {}))
        given, wrong = {key: None}, {key + "e": 1}
        if tool == "vllm-omni":
            given, wrong = base | {"cache_config": given}, base | {"cache_config": wrong}
        else:
            given, wrong = base | given, base | wrong
        path = tmp_path / "config.json"
        path.write_text(json.dumps(given))
        note = next(n for n in import_config(path, tool).keys if n.key.endswith(key))
        assert note.fate != "unknown key", key
        path.write_text(json.dumps(wrong))
        lost = [n for n in import_config(path, tool).keys if n.key.endswith(key + "e")]
        assert [n.fate for n in lost] == ["unknown key"]


def test_keys_without_an_equivalent_stand_in_the_policy(tmp_path: Path) -> None:
    given = {"force_refresh_step_hint": 10, "enable_dmd": True, "max_accumulated_residual_diff_threshold": 2.0}
    found = imported(tmp_path, {"cache_config": given})
    assert {note.fate for note in found.lost()} == {"no equivalent"}
    for key in given:
        assert f"# no equivalent: cache_config.{key} (" in found.text


@pytest.mark.parametrize(("kind", "keep"), [(None, "residual"), ("hidden_states", "output")])
def test_foca_of_cache_dit(tmp_path: Path, kind: str | None, keep: str) -> None:
    """The weights of the last two results and of the last two steps are those of its code, whatever lies between."""
    given = {"enable_foca": True} | ({} if kind is None else {"calibrator_cache_type": kind})
    found = imported(tmp_path, {"cache_config": given})
    assert found.lost() == ()
    region = next(region for region in load_policy(found.text).regions if region.keep is not None)
    assert region.keep == keep
    assert region.forecast is not None
    assert region.forecast.passed is not None
    for elapsed, reach in ((1, 0.5), (3, 1.5), (6, 0.75)):
        at = StaticMoment({}, {}, flow_grid(20), 4 + elapsed, {}, None, {}, (4, 1))
        assert tuple(evaluate(w, at) for w in region.forecast.weights[-1]) == (1 + reach, -reach)
        assert tuple(evaluate(w, at) for w in region.forecast.passed[-1]) == (reach, -reach)


@pytest.mark.parametrize(
    ("values", "code", "says"),
    [
        ({"cache_config": {"enable_foca": True, "enable_taylorseer": True}}, "MC0904", "one stand-in at a time"),
        ({"cache_config": {"residual_diff_threshold": "high"}}, "MC0904", "give a number"),
        ({"cache_config": {"Fn_compute_blocks": 1.5}}, "MC0904", "whole number of at least 1"),
        ({"cache_config": {"residual_diff_threshold": 0}}, "MC0904", "nothing is ever reused"),
        ({"cache_config": {"cache_type": "DBPrune"}}, "MC0903", "for every block by itself"),
        ({"_class_name": "FasterCacheConfig"}, "MC0903", "a whole method"),
        ({"_class_name": "FasterCashConfig"}, "MC0902", "`FasterCacheConfig`"),
        ({"cache_backend": "tea_cache"}, "MC0904", "not in the file"),
        ({"feature_caching": "Ada"}, "MC0903", "codebook"),
        ({"colour": "red"}, "MC0902", "--tool"),
        ("[1, 2]", "MC0901", "no keys with values"),
        ('{"a": 1, "a": 2}', "MC0901", "stands twice"),
        ('{"a": 1,}', "MC0901", ":1:"),
    ],
)
def test_what_gives_no_policy_is_refused(tmp_path: Path, values: object, code: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        imported(tmp_path, values)
    assert refused.value.diagnostics[0].code == code


def test_a_file_that_is_not_there_and_python_that_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        import_config(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is no literal"):
        imported(tmp_path, "FirstBlockCacheConfig(threshold=open('/etc/passwd').read())", "pipe.py")


# ---- the verb ----------------------------------------------------------------------------------------------
def test_the_verb_writes_and_denies(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "mine.policy"
    done = shell("import", CONFIGS / "cache_dit.yaml", "--out", out)
    assert (done.status, done.out) == (0, "")
    assert "did you mean `residual_diff_threshold`?" in done.err
    assert shell("check", out).status == 0
    denied = shell("import", CONFIGS / "cache_dit.yaml", "--deny", "lost")
    assert (denied.status, denied.out) == (1, "")
    assert "error[MC0905]" in denied.err


@pytest.mark.parametrize(
    ("code", "name", "text", "words"),
    [
        ("MC0901", "cache.json", '{\n "Fn_compute_blocks": 1,\n}\n', ()),
        ("MC0902", "config.json", '{"_class_name": "FirstBlockConfig"}', ()),
        ("MC0903", "pab.json", '{"_class_name": "PyramidAttentionBroadcastConfig"}', ()),
        ("MC0904", "cache.yaml", "cache_config: {residual_diff_threshold: high}\n", ()),
        ("MC0905", "cache.yaml", "cache_config: {residual_diff_treshold: 0.12}\n", ("--deny", "lost")),
    ],
)
def test_a_page_shows_its_error(
    code: str, name: str, text: str, words: tuple[str, ...],
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    result = shell("import", name, *words)
    shown = result.err[result.err.index("error[") :]
    assert f"```text\n{shown}```" in (DOCS / "errors" / f"{code}.md").read_text()



def test_every_tool_has_a_section_in_the_docs() -> None:
    heads = re.findall(r"^## (.+)$", (DOCS / "import.md").read_text(), re.MULTILINE)
    assert [head.split()[0].lower() for head in heads] == list(TOOLS)
