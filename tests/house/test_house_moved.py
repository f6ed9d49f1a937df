"""Names that scripts of 0.1.0 import are found where they stood then, and are the same objects."""

from __future__ import annotations

import importlib

import pytest

MOVED = {
    "mccompile.generate.clocks.clock_for": "mccompile.pipelines.finding.clock_for",
    "mccompile.generate.load.Place": "mccompile.generate.placement.Placement",
    "mccompile.language.diagnostics.PolicyError": "mccompile.diagnostics.failure.PolicyError",
    "mccompile.language.failure.Failure": "mccompile.diagnostics.failure.Failure",
    "mccompile.language.source.Source": "mccompile.diagnostics.source.Source",
    "mccompile.policy.from_checked.load_policy": "mccompile.language.load.load_policy",
}


def named(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("former", MOVED)
def test_a_moved_name_is_still_found_where_it_stood(former: str) -> None:
    assert named(former) is named(MOVED[former])
