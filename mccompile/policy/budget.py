"""The measures that can meet a byte budget, and the choice of the first one that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from mccompile import ir

# Dtypes of (residuals, keys and values), the least change first. Residuals come before keys and values: their rounding
# is added to a result, that of keys decides what is attended to.
_DTYPES: tuple[tuple[ir.KeptDtype, ir.KeptDtype], ...] = (
    ("model", "model"), ("bfloat16", "model"), ("bfloat16", "bfloat16"), ("bfloat16", "float8"),
)  # fmt: skip


def measures(cache: ir.Cache, accelerator: bool) -> tuple[ir.Cache, ...]:
    """What may be done to meet the budget of `cache`, in the order in which it is tried; no "auto" is left.

    The first changes nothing; without a budget it is the only one. Words other than "auto" stay. accelerator: the
    model is on one, so that host memory is another memory.
    """
    devices: tuple[Literal["model", "cpu"], ...] = ("cpu",) if cache.device == "cpu" else ("model",)
    if cache.device == "auto" and accelerator:
        devices = ("model", "cpu")
    found: list[ir.Cache] = []
    for device in devices:
        for residual, dtype in _DTYPES:
            option = replace(
                cache, dtype=dtype if cache.dtype == "auto" else cache.dtype,
                residual=residual if cache.residual == "auto" else cache.residual, device=device,
            )  # fmt: skip
            if option not in found:
                found.append(option)
    return tuple(found if cache.budget is not None else found[:1])


def first_within(options: tuple[ir.Cache, ...], bytes_of: Callable[[ir.Cache], int]) -> ir.Cache | None:
    """The first of the options whose bytes are within its budget; None where there is none."""
    return next((o for o in options if o.budget is None or bytes_of(o) <= o.budget), None)


def in_words(cache: ir.Cache) -> str:
    """What is kept how: "keys and values in bfloat16, residuals in the model's dtype, on the model's device"."""
    dtypes = {"auto": "the model's dtype", "model": "the model's dtype"}
    keys, kept = (dtypes.get(d, d) for d in (cache.dtype, cache.residual))
    where = "in host memory" if cache.device == "cpu" else "on the model's device"
    return f"keys and values in {keys}, residuals in {kept}, {where}"
