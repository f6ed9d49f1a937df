"""Errors of a run: each says its code, what is wrong in this very call, and what to do."""

from __future__ import annotations

import pytest

from mccompile.runtime import errors
from mccompile.runtime.errors import RunError

STATED: tuple[tuple[RunError, str], ...] = (
    (errors.NoClock(), "outside a generation"), (errors.UnevenChunks(7, 2), "7 latent frames do not divide into 2"),
    (errors.UnknownStep("t = 5"), "announced schedule: t = 5"), (errors.NotAPrefix("mask"), "mask `mask` is no prefix"),
    (errors.NoChunks(), "the policy's window counts chunks"), (errors.UnknownTimesteps("p", "why"), "unknown: why"),
    (errors.UnderAutocast("Model", "cpu"), "Model was called under `torch.autocast('cpu')`"),
    (errors.TraceMalformed("a.jsonl", 3, "why"), "`a.jsonl`, line 3, is no trace of decisions: why"),
)  # fmt: skip


@pytest.mark.parametrize(("error", "stated"), STATED, ids=[type(error).__name__ for error, _ in STATED])
def test_an_error_says_its_code_and_its_cause(error: RunError, stated: str) -> None:
    (told,) = error.diagnostics
    assert told.code == type(error).code != RunError.code
    assert stated in str(error)
