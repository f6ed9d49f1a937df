"""Planner and run read a table alike, at every size of table and every number of steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.lowering.decide import build_decide
from mccompile.lowering.host import TableRow
from mccompile.policy.bind import bind
from mccompile.policy.evaluate import table_value
from mccompile.policy.phases import Grid
from mccompile.policy.planner import plan
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.decision import Decide, host_rows
from mccompile.runtime.layout import Layout
from mccompile.runtime.store import States
from mccompile.runtime.upload import parameters

STEPS = (1, 2, 3, 5, 7, 8, 11, 12, 16, 19, 23, 28, 37, 50, 64, 97)
POLICY = """policy p {
  param limit = 0.5 in -1..1000
  signal given = table([VALUES])
  phase all { reuse chunk while given < limit }
  layers blocks[*] { keep residual }
}
"""


def grid_of(steps: int) -> Grid:
    sigmas = tuple(1 - i / steps for i in range(steps))
    return Grid(steps, tuple(1000 * s for s in sigmas), sigmas)


def policy_of(size: int) -> ir.PolicyIR:
    return load_policy(Source("p.policy", POLICY.replace("VALUES", ", ".join(str(i) for i in range(size)))))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 16, 28, 50, 62, 90, 100])
def test_a_folded_table_decides_as_the_graph_does(size: int) -> None:
    """Every step of a run at once, as chunks at steps of their own: the graph is fed what the runtime feeds it."""
    policy = policy_of(size)
    spec = build_decide(policy, {}, frozenset())
    assert spec is not None
    (table,) = (row for row in spec.host if isinstance(row, TableRow))
    assert isinstance(table.table, ir.Table)
    decide = Decide(spec, spec.module.forward)
    for steps in STEPS:
        grid = grid_of(steps)
        times = tuple(ChunkTime(k, "active", k) for k in range(steps))
        moment = Moment("r", 0, "cond", grid, times, steps)
        actions = ((Action("dynamic", 0, None, "phase"),) * steps,)
        for limit in {1.0, size // 2, size - 1.0}:
            bound = bind(policy, {"limit": limit})
            folded, unfolded = (plan(bound, grid, {}, frozenset(), fold) for fold in (True, False))
            states = States()
            host = host_rows(spec, moment, actions, states, unfolded, np.ones((1, steps), bool))
            entries = [table_value(table.table, k, steps) for k in range(steps)]
            assert (host[0, spec.host.index(table)] == entries).all(), (size, steps)
            params = parameters(spec.params, bound, torch.device("cpu"))
            mask = decide.run(host, params, {}, states, Layout(1, steps, 1, 2), moment)
            planned = np.array([c.action == "compute" for c in folded.cells])
            assert (mask[0, 1:, 0, 0] == planned[1:]).all(), (size, steps, limit)
