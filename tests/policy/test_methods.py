"""Published methods that the clock alone decides: their plans against each method's own rule, written out in Python."""

from __future__ import annotations

import pytest
from policy_cases import grid_of

from mccompile.language.coefficients import coefficient_sets
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.planner import plan

STEPS = (10, 28, 50, 63)


def planned(name: str, steps: int, **values: float) -> list[bool]:
    """Which steps the shipped policy computes; nothing is left to a run."""
    cells = plan(bind(load_policy(name), values), grid_of(steps), {}, frozenset()).cells
    assert all(cell.action != "dynamic" for cell in cells)
    return [cell.action == "compute" for cell in cells]


def magcache(steps: int, threshold: float, patience: int, retention: float) -> list[bool]:
    """The loop of MagCache's code: a running product and a running error, both reset by a computation."""
    measured = coefficient_sets()["table", "magcache_wan2.1_1.3b_cond"].values
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


INTERVALS = [("taylorseer", 3, 4), ("abcache", 4, 2), ("fixed_interval", 3, 3)]


@pytest.mark.parametrize(("name", "first", "every"), INTERVALS)
def test_an_interval(name: str, first: int, every: int) -> None:
    assert planned(name, 20) == [step < first or (step - first) % every == 0 for step in range(20)]


@pytest.mark.parametrize("setting", [(0.12, 4, 0.2), (0.24, 6, 0.2), (0.06, 2, 0.4), (0.35, 12, 0.1)])
@pytest.mark.parametrize("steps", STEPS)
def test_magcache(steps: int, setting: tuple[float, int, float]) -> None:
    threshold, patience, retention = setting
    found = planned("magcache", steps, threshold=threshold, patience=patience, retention=retention)
    assert found == magcache(steps, *setting)
    assert not all(found)
