"""What a rule computes in one call: conditions, guards, shares and alternatives, on cells that are written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from mccompile import ir
from mccompile.lowering.expressions import Leaves
from mccompile.lowering.fire import fire
from mccompile.lowering.slots import Count, Slot

Cells = list[list[list[float]]]  # of one sample: chunks, frames, tokens of a frame
NAN, TOKEN, FRAME, CHUNK = float("nan"), ir.Granularity.TOKEN, ir.Granularity.FRAME, ir.Granularity.CHUNK
SIGMA = ir.ClockRef("sigma")
DEBT = ir.Accumulate(ir.Const(0.5), "debt")


def cells(values: Cells) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def leaves(sigma: Cells, account: Cells | None = None, **more: Cells) -> Leaves:
    """sigma: what a rule reads of the clock, here for each cell. account: before this step, 0 unless it is given."""
    now = cells(sigma)
    accounts = {"account": torch.zeros_like(now) if account is None else cells(account)}
    accounts |= {name: cells(values) for name, values in more.items()}
    return Leaves({}, {"sigma": now}, {}, {}, {}, {}, {}, accounts)


def below(limit: float, of: ir.Expr = SIGMA) -> ir.Expr:
    return ir.Apply("lt", (of, ir.Const(limit)))


def reuse(condition: ir.Expr, granularity: ir.Granularity = TOKEN, **guards: Any) -> ir.Reuse:
    names = ("vote", "hold_below", "all_above", "max_consecutive", "max_total", "max_reused")
    limits = [None if name not in guards else ir.Const(guards[name]) for name in names]
    return ir.Reuse(granularity, condition, *limits, stand_ins=guards.get("stand_ins"))


def counted(counts: Mapping[str, Cells]) -> Any:
    def get(slot: Slot) -> torch.Tensor:
        assert isinstance(slot, Count)
        return cells(counts[slot.of])

    return get


def computed(rule: ir.Reuse | ir.Top, given: Leaves, **counts: Cells) -> Cells:
    found = fire(rule, given, counted(counts)).cells
    assert found.dtype == torch.bool
    return found[0].int().tolist()


TWO_CHUNKS: Cells = [[[0.1, 0.9, 0.2]], [[0.6, 0.7, 0.3]]]


def test_cells_are_computed_where_the_condition_fails() -> None:
    assert computed(reuse(below(0.5)), leaves(TWO_CHUNKS)) == [[[0, 1, 0]], [[1, 1, 0]]]


def test_what_is_no_finite_number_is_computed_whatever_the_condition_says() -> None:
    sigma = [[[0.1, NAN, float("inf")]], [[0.1, 0.1, 0.1]]]
    never = ir.Apply("not", (ir.Apply("lt", (SIGMA, ir.Const(-1.0))),))
    assert computed(reuse(never), leaves(sigma)) == [[[0, 1, 1]], [[0, 0, 0]]]
    account = [[[0.0, 0.0, 0.0]], [[0.0, NAN, 0.0]]]
    assert computed(reuse(never), leaves(TWO_CHUNKS, account)) == [[[0, 0, 0]], [[0, 1, 0]]]
    assert computed(reuse(never), leaves(TWO_CHUNKS, debt=account)) == [[[0, 0, 0]], [[0, 1, 0]]]


@pytest.mark.parametrize(
    ("granularity", "wanted"), [(TOKEN, [[[0, 1, 0]], [[0, 0, 0]]]), (FRAME, [[[0, 1, 0]], [[0, 0, 0]]]),
                                (CHUNK, [[[1, 1, 1]], [[0, 0, 0]]]), (ir.Granularity.STEP, [[[1, 1, 1]], [[0, 0, 0]]])],
)  # fmt: skip
def test_a_chunk_has_the_account_of_the_token_that_drifted_most(granularity: ir.Granularity, wanted: Cells) -> None:
    drift = ir.Accumulate(ir.Const(0.5), "account")
    account = [[[0.0, 0.4, 0.1]], [[0.1, 0.2, 0.0]]]
    found = fire(reuse(below(0.8, drift), granularity), leaves(TWO_CHUNKS, account), counted({}))
    assert found.cells[0].int().tolist() == wanted
    grown = [[[0.9, 0.9, 0.9]], [[0.7, 0.7, 0.7]]] if granularity <= CHUNK else [[[0.5, 0.9, 0.6]], [[0.6, 0.7, 0.5]]]
    torch.testing.assert_close(found.accounts["account"], cells(grown))


def test_accounts_that_a_rule_does_not_read_stay() -> None:
    found = fire(reuse(below(0.8, DEBT)), leaves(TWO_CHUNKS, debt=TWO_CHUNKS), counted({}))
    torch.testing.assert_close(found.accounts["debt"], cells(TWO_CHUNKS) + 0.5)
    torch.testing.assert_close(found.accounts["account"], torch.zeros(1, 2, 1, 3))


FRAMES: Cells = [[[0.1, 0.9, 0.9], [0.9, 0.9, 0.2]]]  # one chunk of two frames; 4 of 6 tokens fire above 0.5
GUARDS: dict[str, tuple[dict[str, float], Cells]] = {
    "a place fires in more than half of its frames": ({"vote": 0.5}, [[[0, 1, 0]]]),
    "in at least half of them": ({"vote": 0.49}, [[[1, 1, 1]]]),
    "hold below more than what fires": ({"hold_below": 0.67}, [[[0, 0, 0], [0, 0, 0]]]),
    "hold below less": ({"hold_below": 0.66}, [[[0, 1, 1], [1, 1, 0]]]),
    "all above less than what fires": ({"all_above": 0.66}, [[[1, 1, 1], [1, 1, 1]]]),
    "all above more": ({"all_above": 0.67}, [[[0, 1, 1], [1, 1, 0]]]),
    "held, so not all": ({"hold_below": 0.67, "all_above": 0.1}, [[[0, 0, 0], [0, 0, 0]]]),
    "at most 2 in a row": ({"max_consecutive": 2.0}, [[[0, 1, 1], [1, 1, 1]]]),
    "at most 3 in total": ({"max_total": 3.0}, [[[1, 1, 1], [1, 1, 0]]]),
    "none is reused": ({"max_reused": 0.0}, [[[1, 1, 1], [1, 1, 1]]]),
    "one of six is reused": ({"max_reused": 0.2}, [[[1, 1, 1], [1, 1, 0]]]),
    "as many as are": ({"max_reused": 0.34}, [[[0, 1, 1], [1, 1, 0]]]),
}  # fmt: skip
STREAK: Cells = [[[1.0, 9.0, 0.0], [0.0, 0.0, 2.0]]]
TOTAL: Cells = [[[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]]]
ACCOUNT: Cells = [[[0.3, 0.1, 0.1], [0.1, 0.1, 0.2]]]


@pytest.mark.parametrize("how", GUARDS)
def test_guards_change_what_fires(how: str) -> None:
    """Each tells where it changed something. The highest accounts are computed first where too many were reused."""
    limits, wanted = GUARDS[how]
    given = leaves(FRAMES, ACCOUNT)
    found = fire(reuse(below(0.5), **limits), given, counted({"streak": STREAK, "total": TOTAL}))
    plain = fire(reuse(below(0.5)), given, counted({}))
    shown = found.cells.expand(1, 1, 2, 3)
    assert shown[0].int().tolist() == (wanted if len(wanted[0]) == 2 else [[wanted[0][0]] * 2])
    assert plain.acted == {}
    changed = torch.zeros_like(shown)
    for acted in found.acted.values():
        changed = changed | acted
    assert torch.equal(changed, shown != plain.cells) or len(limits) > 1
    assert len(found.acted) == len(limits)


def test_every_chunk_has_its_own_share() -> None:
    sigma = [[[0.9, 0.1, 0.1, 0.1]], [[0.9, 0.9, 0.9, 0.1]]]
    assert computed(reuse(below(0.5), hold_below=0.5), leaves(sigma)) == [[[0, 0, 0, 0]], [[1, 1, 1, 0]]]
    assert computed(reuse(below(0.5), all_above=0.5), leaves(sigma)) == [[[1, 0, 0, 0]], [[1, 1, 1, 1]]]


def test_a_share_that_is_the_limit_is_neither_below_nor_above() -> None:
    sigma = [[[0.9, 0.1, 0.1, 0.1]], [[0.9, 0.9, 0.9, 0.1]]]
    fired = [[[1, 0, 0, 0]], [[1, 1, 1, 0]]]
    assert computed(reuse(below(0.5), hold_below=0.25), leaves(sigma)) == fired
    assert computed(reuse(below(0.5), all_above=0.75), leaves(sigma)) == fired


def test_places_vote_in_each_chunk_by_itself() -> None:
    sigma = [[[0.9, 0.1], [0.9, 0.1], [0.1, 0.1]], [[0.1, 0.9], [0.9, 0.9], [0.1, 0.1]]]
    found = computed(reuse(below(0.5), vote=0.5), leaves(sigma))
    assert found == [[[1, 0]] * 3, [[0, 1]] * 3]


def test_the_account_that_the_rule_reads_says_what_is_computed_first() -> None:
    debt = [[[0.2, 0.4, 0.3]], [[0.5, 0.6, 0.7]]]
    rule = reuse(below(9.0, DEBT), max_reused=0.67)
    assert computed(rule, leaves(TWO_CHUNKS, debt=debt)) == [[[0, 1, 0]], [[0, 0, 1]]]


@pytest.mark.parametrize(
    ("share", "wanted"),
    [(0.0, [[[0, 0, 0]], [[0, 0, 0]]]), (0.3, [[[0, 1, 0]], [[0, 1, 0]]]), (0.5, [[[0, 1, 1]], [[1, 1, 0]]]),
     (1.0, [[[1, 1, 1]], [[1, 1, 1]]])],
)  # fmt: skip
def test_the_share_of_the_highest_tokens_is_rounded_up(share: float, wanted: Cells) -> None:
    assert computed(ir.Top(ir.Const(share), SIGMA), leaves(TWO_CHUNKS)) == wanted


def test_of_equal_tokens_the_first_ones_are_computed() -> None:
    assert computed(ir.Top(ir.Const(0.5), SIGMA), leaves([[[0.5, 0.7, 0.5, 0.5]]])) == [[[1, 1, 0, 0]]]


def test_a_share_by_the_clock_is_that_of_each_chunk() -> None:
    given = leaves(TWO_CHUNKS)
    chunks = torch.tensor([0.3, 1.0]).view(1, 2, 1, 1)
    given = Leaves({}, {"sigma": cells(TWO_CHUNKS), "fraction": chunks}, {}, {}, {}, {}, {}, given.accounts)
    assert computed(ir.Top(ir.ClockRef("fraction"), SIGMA), given) == [[[0, 1, 0]], [[1, 1, 1]]]


def test_tokens_without_a_score_are_computed_too() -> None:
    sigma = [[[0.1, NAN, 0.2, 0.3]]]
    assert computed(ir.Top(ir.Const(0.0), SIGMA), leaves(sigma)) == [[[0, 1, 0, 0]]]


def test_guards_of_a_share_and_what_it_adds() -> None:
    rule = ir.Top(ir.Const(0.3), ir.Apply("add", (SIGMA, DEBT)), ir.Const(2.0), ir.Const(3.0))
    given = leaves(TWO_CHUNKS, debt=TWO_CHUNKS)
    streak, total = [[[0.0, 0.0, 2.0]], [[1.0, 1.0, 1.0]]], [[[0.0, 0.0, 0.0]], [[2.0, 0.0, 3.0]]]
    found = fire(rule, given, counted({"streak": streak, "total": total}))
    assert found.cells[0].int().tolist() == [[[0, 1, 1]], [[0, 1, 1]]]
    assert {name: int(acted.sum()) for name, acted in found.acted.items()} == {
        "at most in a row": 1, "at most in total": 1,
    }  # fmt: skip
    torch.testing.assert_close(found.accounts["debt"], cells(TWO_CHUNKS) + 0.5)
    assert found.way.dtype == torch.uint8
    assert not found.way.any()


def test_the_first_alternative_that_holds_stands_in() -> None:
    """The last one where none holds: a guard may reuse the cell all the same."""
    condition = ir.Apply("or", (ir.Apply("or", (below(0.2), below(0.4))), below(0.6)))
    rule = reuse(condition, stand_ins=(None, None, None))
    sigma = [[[0.1, 0.3, 0.5]], [[0.7, NAN, 0.1]]]
    found = fire(rule, leaves(sigma), counted({}))
    assert found.way[0].tolist() == [[[0, 1, 2]], [[2, 2, 0]]]
    assert found.cells[0].int().tolist() == [[[0, 0, 0]], [[1, 1, 0]]]
    assert not fire(reuse(below(0.2)), leaves(sigma), counted({})).way.any()
