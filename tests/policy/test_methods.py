"""Published methods that the clock alone decides: their plans against each method's own rule, written out in Python."""

from __future__ import annotations

import numpy as np
import pytest
from policy_cases import STATIC, grid_of

from mccompile import ir
from mccompile.language.coefficients import coefficient_sets
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.evaluate import static_changes
from mccompile.policy.facts import steps_read
from mccompile.policy.groups import bounds_of, policies
from mccompile.policy.planner import plan

STEPS = (10, 28, 50, 63)


def planned(name: str, steps: int, **values: float) -> list[bool]:
    """Which steps the shipped policy computes; nothing is left to a run."""
    cells = plan(bind(load_policy(name), values), grid_of(steps), {}, frozenset()).cells
    assert all(cell.action != "dynamic" for cell in cells)
    return [cell.action == "compute" for cell in cells]


MASKS = {  # the steps of a run of 28 that cache-dit computes and caches in turn
    "step_mask_slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    "step_mask": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "step_mask_fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    "step_mask_ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask(name: str) -> None:
    computed, cached = MASKS[name]
    wanted = [True] * computed[0]
    for reused, again in zip(cached, computed[1:], strict=True):
        wanted += [False] * reused + [True] * again
    assert planned(name, 28) == wanted


TEACACHES = {  # the fit, the steps that are computed first, and those that are computed last
    "teacache": ("wan2.1_1.3b_ret", 5, 0),
    "teacache_14b": ("wan2.1_14b_ret", 5, 0),
    "teacache_i2v_480p": ("wan2.1_i2v_480p_ret", 5, 0),
    "teacache_i2v_720p": ("wan2.1_i2v_720p_ret", 5, 0),
    "teacache_cogvideox": ("cogvideox_5b", 1, 1),
    "teacache_cogvideox_2b": ("cogvideox_2b", 1, 1),
    "teacache_plain": ("wan2.1_1.3b", 1, 1),
    "teacache_plain_14b": ("wan2.1_14b", 1, 1),
    "teacache_plain_i2v_480p": ("wan2.1_i2v_480p", 1, 1),
    "teacache_plain_i2v_720p": ("wan2.1_i2v_720p", 1, 1),
    "teacache_ti2v_5b": ("wan2.2_ti2v_5b", 1, 1),
    "teacache_embedded": ("embedded_modulation", 5, 0),
    "teacache_taylor": ("wan2.1_1.3b_ret", 5, 0),
}


@pytest.mark.parametrize("name", TEACACHES)
def test_teacache(name: str) -> None:
    """The loop of TeaCache's code, on a drift of the embedding that rises towards the end."""
    fit, first, last = TEACACHES[name]
    coefficients = coefficient_sets()["polynomial", fit].values
    policy, steps = load_policy(name), 30
    (change,) = static_changes(policy, STATIC)
    moved = [0.02 + 0.10 * (step / steps) ** 2 for step in range(steps)]
    cells = plan(bind(policy, {}), grid_of(steps), {change: tuple(moved)}, STATIC).cells
    wanted, account = [], 0.0
    for step in range(steps):
        account += float(np.polyval(coefficients, moved[step]))
        always = step < first or step >= steps - last
        wanted.append(always or account >= bind(policy, {}).values["threshold"])
        account = 0.0 if wanted[-1] else account
    assert [cell.action == "compute" for cell in cells] == wanted
    assert not all(wanted)


MEASURED = [("hunyuan", "hunyuan_video"), ("ltx", "ltx_0.9.1"), ("mochi", "mochi"), ("cosmos", "cosmos")]


@pytest.mark.parametrize(("name", "fit"), MEASURED)
def test_a_measured_teacache_has_the_fit_of_its_model(name: str, fit: str) -> None:
    found, flux = load_policy(f"teacache_{name}"), load_policy("teacache_flux")
    (signal,) = found.signals
    assert isinstance(signal.expr, ir.Polynomial)
    assert signal.expr.coefficients == coefficient_sets()["polynomial", fit].values
    assert (found.phases, found.regions) == (flux.phases, flux.regions)


def magcache(
    steps: int, threshold: float, patience: int, retention: float, size: str = "magcache_wan2.1_1.3b_cond"
) -> list[bool]:
    """The loop of MagCache's code: a running product and a running error, both reset by a computation."""
    measured = coefficient_sets()["table", size].values
    ratios = [measured[round(i * (len(measured) - 1) / (steps - 1))] for i in range(steps)]
    computed, product, error, skipped = [], 1.0, 0.0, 0
    for step in range(steps):
        skip = False
        if step >= retention * steps:
            product, skipped = product * ratios[step], skipped + 1
            error += abs(1 - product)
            skip = error < threshold and skipped <= patience
        if not skip:
            product, error, skipped = 1.0, 0.0, 0
        computed.append(not skip)
    return computed


INTERVALS = [
    ("taylorseer", 3, 4), ("hicache", 3, 5), ("abcache", 4, 2), ("taylorseer_lite", 4, 4), ("fixed_interval", 3, 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "first", "every"), INTERVALS)
def test_an_interval(name: str, first: int, every: int) -> None:
    assert planned(name, 20) == [step < first or (step - first) % every == 0 for step in range(20)]


@pytest.mark.parametrize("steps", [20, 30, 50])
def test_spectrum(steps: int) -> None:
    """Its code: five first steps, then every n-th, where n grows from 2 by 0.75 with each computation."""
    computed, window, cached = [], 2.0, 0
    for step in range(steps):
        actual = step < 5 or (cached + 1) % int(window) == 0
        if step >= 5 and actual:
            window = round(window + 0.75, 3)
        cached = 0 if actual else cached + 1
        computed.append(actual)
    assert planned("spectrum", steps) == computed
    assert steps < 50 or sum(computed) == 14


@pytest.mark.parametrize("setting", [(0.12, 4, 0.2), (0.24, 6, 0.2), (0.06, 2, 0.4), (0.35, 12, 0.1)])
@pytest.mark.parametrize("steps", STEPS)
def test_magcache(steps: int, setting: tuple[float, int, float]) -> None:
    threshold, patience, retention = setting
    found = planned("magcache", steps, threshold=threshold, patience=patience, retention=retention)
    assert found == magcache(steps, *setting)
    assert not all(found)


@pytest.mark.parametrize("threshold", [0.02, 0.06, 0.12])
def test_magcache_of_branches(threshold: float) -> None:
    """Each branch has its own ratios, and its own plan."""
    bounds = bounds_of(bind(load_policy("magcache_branches"), {"threshold": threshold}))
    for branch in ("cond", "uncond"):
        cells = plan(bounds[branch], grid_of(50), {}, frozenset()).cells
        wanted = magcache(50, threshold, 4, 0.2, f"magcache_wan2.1_1.3b_{branch}")
        assert [cell.action for cell in cells] == ["compute" if computed else "reuse" for computed in wanted]


def test_settings_of_magcache() -> None:
    assert planned("magcache_fast", 50) == magcache(50, 0.24, 6, 0.2)
    assert planned("magcache_14b", 50) == magcache(50, 0.12, 4, 0.2, "magcache_wan2.1_14b_cond")
    for size in ("480p", "720p"):
        assert planned(f"magcache_i2v_{size}", 40) == magcache(40, 0.12, 4, 0.2, f"magcache_wan2.1_i2v_{size}_cond")
    for name, table in (("hunyuan", "720p"), ("hunyuan_540p", "540p")):
        assert planned(f"magcache_{name}", 50) == magcache(50, 0.24, 6, 0.2, f"magcache_hunyuan_{table}")
    assert planned("magcache_embedded", 30) == magcache(30, 0.12, 4, 0.2, "embedded_ratios")


def test_magcache_on_flux_computes_its_eleventh_step() -> None:
    """The loop of MagCache4FLUX: `<=`, first steps rounded, and no skip at step 11 of 28."""
    measured = coefficient_sets()["table", "magcache_flux"].values
    computed, product, error, skipped = [], 1.0, 0.0, 0
    for step in range(28):
        skip = False
        if step >= int(0.1 * 28 + 0.5):
            product, skipped = product * measured[step], skipped + 1
            error += abs(1 - product)
            skip = error <= 0.24 and skipped <= 5 and step != 11
        if not skip:
            product, error, skipped = 1.0, 0.0, 0
        computed.append(not skip)
    assert planned("magcache_flux", 28) == computed


@pytest.mark.parametrize("name", ["deltadit", "deltadit_taylor"])
@pytest.mark.parametrize(("steps", "every"), [(10, 2), (11, 3)])
def test_deltadit(name: str, steps: int, every: int) -> None:
    """Each half of the run lets one half of the blocks wait; a phase counts its own steps."""
    bounds = bounds_of(bind(load_policy(name), {"interval": every}))
    found = {group: plan(bound, grid_of(steps), {}, frozenset()) for group, bound in bounds.items()}
    computed = {group: [c.step for c in made.cells if c.action == "compute"] for group, made in found.items()}
    early = range((steps + 1) // 2)
    late = range(len(early), steps)
    assert computed == {"front": [0, *early[1:], *late[::every]], "rear": [*early[::every], *late]}


def test_halves_of_motioncache_decide_as_its_phases() -> None:
    """One half as its coarse phase to the end, the other as MotionCache itself."""
    whole, halves = load_policy("motioncache"), policies(load_policy("motion_halves"))
    assert [phase.rule for phase in halves["rear"].phases] == [phase.rule for phase in whole.phases]
    assert halves["front"].phases[-1].rule == whole.phases[1].rule


SETTINGS = {  # blocks that always run first, threshold, first steps, most steps in a row
    "dbcache": ((0, 1), 0.08, 8, 3),
    "dbcache_f8": ((0, 7), 0.08, 8, 3),
    "dbcache_slow": ((0, 3), 0.12, 4, 4),
    "dbcache_f1": ((0, 0), 0.24, 4, 3),
    "dbcache_taylor": ((0, 1), 0.08, 8, 3),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_dbcache(name: str) -> None:
    policy, values = load_policy(name), bind(load_policy(name), {}).values
    where = policy.regions[0].where
    assert isinstance(where, ir.Blocks)
    assert ((where.first, where.last), *values.values()) == SETTINGS[name]
    assert policy.regions[0].keep is None
    assert (policy.regions[1].forecast is not None) == (name == "dbcache_taylor")


FORECASTS = {
    "compute": 0, "teacache": 0, "taylorseer": 3, "hicache": 3, "teacache_taylor": 2, "abcache": 2,
    "taylorseer_lite": 2, "teacache_embedded_taylor": 2, "spectrum": 14,
}  # fmt: skip


@pytest.mark.parametrize(("name", "steps"), [*FORECASTS.items()])
def test_how_many_results_a_forecast_reads(name: str, steps: int) -> None:
    assert steps_read(load_policy(name)) == steps


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.18, 0.3, 0.6])
@pytest.mark.parametrize("part", ["attn", "cross", "ffn"])
def test_smoothcache(part: str, alpha: float) -> None:
    """Its greedy schedule: the last result is reused while the error measured for its age is below alpha."""
    steps = 30
    errors = [coefficient_sets()["table", f"embedded_parts_error_{age}_{part}"].values for age in (1, 2)]
    wanted, last = [True], 0
    for step in range(1, steps):
        age = step - last
        wanted.append(age > 2 or not np.float32(errors[age - 1][step]) < np.float32(alpha))
        last = step if wanted[-1] else last
    bound = bounds_of(bind(load_policy("smoothcache"), {"alpha": alpha}))[part]
    cells = plan(bound, grid_of(steps), {}, frozenset()).cells
    assert [cell.action for cell in cells] == ["compute" if computed else "reuse" for computed in wanted]
