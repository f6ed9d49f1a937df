"""The shipped policies: their IR reads back, and they plan on the grids that people run."""

from __future__ import annotations

import pytest
from policy_cases import STATIC, grid_of

from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.evaluate import static_changes
from mccompile.policy.groups import bounds_of
from mccompile.policy.planner import plan, predicted_share, read_plan, show_plan
from mccompile.policy.text import read, show
from mccompile.resources import shipped_policies

WHOLLY_STATIC = (
    "abcache", "compute", "exact", "fixed_interval", "flowcache", "magcache", "step_mask", "taylorseer", "teacache",
)  # fmt: skip


@pytest.mark.parametrize("name", shipped_policies())
def test_a_shipped_policy_reads_back_and_plans(name: str) -> None:
    policy = load_policy(name)
    assert read(show(policy)) == policy
    tables = dict.fromkeys(static_changes(policy, STATIC), (0.012,) * 28)
    plans = [plan(bound, grid_of(28), tables, STATIC) for bound in bounds_of(bind(policy, {})).values()]
    assert [read_plan(show_plan(made)) for made in plans] == plans
    first = "dynamic" if name == "merge" else "compute"  # merged tokens read nothing older
    assert all(made.cells[0].action == first for made in plans)
    made = plans[0]
    if name in WHOLLY_STATIC:
        assert 0 < predicted_share(made) <= 1
        assert (predicted_share(made) == 1) == (name in ("compute", "exact"))
