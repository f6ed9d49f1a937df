"""The phase machine: laws on random phases, and MotionCache's own rules."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import UNHURRIED, grid_of, motioncache, policy

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.phases import Grid, advance, current, next_phase, phase_step, start

C = ir.Const
counts = st.integers(0, 5).map(lambda n: C(float(n)))
STEP = ir.ClockRef("step")
spans = st.one_of(
    st.builds(ir.ForSteps, counts),
    st.builds(ir.UntilRefreshes, counts),
    st.builds(ir.LastSteps, counts),
    st.builds(lambda a, n: ir.Between(STEP, C(float(a)), C(float(a + n))), st.integers(0, 20), st.integers(0, 4)),
)
computed_each_step = st.lists(st.booleans(), min_size=1, max_size=24)


def bound_of(*phases: ir.PhaseSpan) -> BoundPolicy:
    return bind(policy(*(ir.Phase(f"p{i}", s, ir.Compute()) for i, s in enumerate(phases))), {})


def walked(bound: BoundPolicy, grid: Grid, computed: list[bool]) -> list[int]:
    """Indices of the phases in force; checks `next_phase` and `phase_step` on the way."""
    state, found = start(bound), list[int]()
    for step, any_computed in enumerate(computed):
        found.append(current(bound, state, grid))
        assert state.step == step
        assert phase_step(bound, state, grid) == found[:-1].count(found[-1])
        after = next_phase(bound, state, grid, any_computed)
        state = advance(bound, state, grid, any_computed)
        if step + 1 < grid.steps:
            assert after == current(bound, state, grid)
    return found


@UNHURRIED
@given(st.lists(spans, max_size=5), computed_each_step)
def test_laws_of_phases(drawn: list[ir.PhaseSpan], computed: list[bool]) -> None:
    bound, grid = bound_of(*drawn, ir.Rest()), grid_of(len(computed))
    found = walked(bound, grid, computed)
    last = max([int(s.n.value) for s in drawn if isinstance(s, ir.LastSteps)], default=0)
    in_order = []
    for step, index in enumerate(found):
        span = bound.ir.phases[index].span
        assert isinstance(span, ir.LastSteps) == (step >= grid.steps - last)
        ranges = [s for s in drawn if isinstance(s, ir.Between) and s.low.value <= step < s.high.value]
        if ranges and not isinstance(span, ir.LastSteps):
            assert span == ranges[0]
        if not isinstance(span, ir.LastSteps | ir.Between):
            in_order.append(step)
    assert all(found[a] <= found[b] for a, b in pairwise(in_order))
    for index, span in enumerate([*drawn, ir.Rest()]):
        own = [step for step in in_order if found[step] == index]
        over = any(found[step] > index for step in in_order)
        if isinstance(span, ir.ForSteps):
            assert len(own) == span.n.value or (len(own) < span.n.value and not over)
        if isinstance(span, ir.UntilRefreshes):
            done = sum(computed[step] for step in own)
            assert done == span.n.value or (done < span.n.value and not over)
            assert not own or not over or computed[own[-1]]


def test_refreshes_count_only_inside_their_phase() -> None:
    bound = bound_of(ir.ForSteps(C(3.0)), ir.UntilRefreshes(C(2.0)), ir.Rest())
    computed = [True, True, True, False, True, False, True, False]
    assert walked(bound, grid_of(8), computed) == [0, 0, 0, 1, 1, 1, 1, 2]


def test_a_phase_waits_while_another_interrupts_it() -> None:
    bound = bound_of(ir.ForSteps(C(3.0)), ir.Between(STEP, C(1.0), C(3.0)), ir.Rest(), ir.LastSteps(C(1.0)))
    assert walked(bound, grid_of(8), [True] * 8) == [0, 1, 1, 0, 0, 2, 2, 3]


def test_ranges_go_by_the_chunks_own_clock() -> None:
    between = ir.Between(ir.ClockRef("timestep"), C(100.0), C(800.0))
    assert walked(bound_of(between, ir.Rest()), grid_of(10), [True] * 10) == [1, 1, 1, *[0] * 7]
    between = ir.Between(ir.ClockRef("fraction"), C(0.5), C(0.75))
    assert walked(bound_of(between, ir.Rest()), grid_of(4), [True] * 4) == [1, 1, 0, 1]


@pytest.mark.parametrize(("updates", "needed_from"), [(0.0, 4), (1.0, 5), (3.0, 7)])
def test_motioncache_needs_motion_from_the_step_before_its_fine_phase(updates: float, needed_from: int) -> None:
    bound, grid = bind(motioncache(), {"updates": updates}), grid_of(12)
    state, needed = start(bound), list[int]()
    for step in range(12):
        after = next_phase(bound, state, grid, True)
        if after is not None and bound.ir.phases[after].name == "fine":
            needed.append(step)
        state = advance(bound, state, grid, True)
    assert needed == list(range(needed_from, 12))  # the last step too: the next chunk looks at its last frame


def test_phases_that_end_leave_nothing() -> None:
    bound, grid = bound_of(ir.ForSteps(C(1.0))), grid_of(2)
    state = advance(bound, start(bound), grid, True)
    assert next_phase(bound, start(bound), grid, True) is None
    with pytest.raises(PolicyError, match="covers step 1"):
        current(bound, state, grid)
