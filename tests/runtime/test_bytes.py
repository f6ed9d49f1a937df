"""How the bytes of a store are counted: what stays between calls, what is there during one, and where."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mccompile import ir
from mccompile.language.load import load_policy
from mccompile.lowering.slots import Count
from mccompile.policy.bind import bind
from mccompile.runtime.rehearse import KeptBytes, bytes_of
from mccompile.runtime.store import BranchStore, Once

CACHE = ir.Cache("auto", "auto", "auto", None, None, False)
BYTES = KeptBytes(key_values=1, text=2, residuals=4, merged=8, states=16, increments=32, working=64)


def test_what_a_branch_keeps_and_what_a_budget_is_about() -> None:
    assert BYTES.total == 63
    assert BYTES.on_device(CACHE) == 127
    assert BYTES.on_device(replace(CACHE, device="cpu")) == 127 - 7
    assert BYTES.of_branches(3) == KeptBytes(3, 6, 12, 24, 48, 96, 64)


def store() -> BranchStore:
    """Tensors of float32 and one of whole numbers, whose last axis has four entries each."""
    made = BranchStore.empty({"": bind(load_policy("teacache"), {})}, 1, 1)

    def of(rows: int) -> torch.Tensor:
        return torch.ones(rows, 4)

    memory = made.memory
    memory.buffers = {0: (of(1), of(2)), 1: (of(8),)}
    memory.once = {0: Once((), (of(16), torch.ones(3, dtype=torch.int64))), 2: Once((), (of(32),))}
    memory.kept, memory.merged = {(0, "x"): of(64), (1, "x"): of(128)}, {(0, "x"): of(256)}
    memory.older, memory.passed = {(0, "x"): (of(3), of(3))}, {(0, "x"): (of(5),)}
    memory.increments, memory.outputs = {0: of(512)}, of(7)
    made.course.states.tensors[Count("account")] = of(9)
    return made


@pytest.mark.parametrize(("kept", "row"), [("auto", 16), ("float32", 16), ("bfloat16", 8), ("float8", 5)])
def test_keys_values_and_residuals_are_counted_as_they_are_kept(kept: ir.KeptDtype, row: int) -> None:
    """Each by its own dtype; what is no floating-point number, what streams and states take, stays as it is."""
    found = bytes_of(store(), replace(CACHE, dtype=kept), 4, accelerator=False)
    residuals = 64 + 128 + 3 + 3 + 5 + 7
    assert (found.key_values, found.text, found.residuals) == (11 * row, 48 * row + 24, residuals * 16)
    assert (found.merged, found.states, found.increments) == (256 * 16, 9 * 16, 512 * 16)
    other = bytes_of(store(), replace(CACHE, residual=kept), 4, accelerator=False)
    assert (other.key_values, other.residuals) == (11 * 16, residuals * row)
    assert other.total == found.total + (row - 16) * (residuals - 11 - 48)


def test_the_working_copies_of_one_block() -> None:
    """Read back in the model's dtype where they are kept in another; of two blocks where they lie in host memory."""
    assert bytes_of(store(), CACHE, 2, accelerator=True).working == 0
    assert bytes_of(store(), replace(CACHE, dtype="float8"), 2, accelerator=False).working == 8 * 4 * 2
    away = replace(CACHE, device="cpu")
    assert bytes_of(store(), away, 2, accelerator=False).working == 0
    blocks, kept = 16 * (3 + 16) + 24, 16 * 128
    assert bytes_of(store(), away, 2, accelerator=True).working == 2 * blocks + kept
    both = bytes_of(store(), replace(away, dtype="bfloat16"), 2, accelerator=True)
    assert both.working == 8 * 4 * 2 + 2 * (8 * (3 + 16) + 24) + kept
    empty = BranchStore.empty({"": bind(load_policy("teacache"), {})}, 1, 1)
    assert bytes_of(empty, replace(away, dtype="float8"), 2, accelerator=True) == KeptBytes(0, 0, 0, 0, 0, 0, 0)
