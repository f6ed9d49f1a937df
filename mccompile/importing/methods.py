"""The methods that several tools have, as drafts: TeaCache, MagCache, first-block caches, Taylor forecasts."""

from __future__ import annotations

from mccompile.importing.keys import Keys
from mccompile.importing.writing import PolicyDraft, polynomial

MOST_STEPS = 1000
MAG_RATIOS = "the ratios that were measured on the model"  # what MagCache must be given


def nothing_cached(name: str, says: str) -> PolicyDraft:
    """Everything is computed."""
    return PolicyDraft(name, says, phases=["phase all { compute }"], layers=())


def teacache(
    name: str, says: str, threshold: float, coefficients: tuple[float, ...] | None, source: str, warmup: int, last: int
) -> PolicyDraft:
    """Reuse the whole stack while the rescaled change of `source` adds up to less than the threshold."""
    draft = PolicyDraft(name, says)
    limit = draft.param("threshold", threshold, 0.001, 1.0)
    first = draft.param("warmup", max(warmup, 1), 1, MOST_STEPS, "steps")
    fit = "" if coefficients is None else f" | polynomial({polynomial(coefficients)})"
    draft.signals.append(f"signal drift = rel_l1({source}, over = step){fit}")
    draft.phases.append(f"phase warmup for {first} steps {{ compute }}")
    draft.phases.append(f"phase tea {{ reuse step while accumulate(drift) < {limit} }}")
    if last:
        draft.phases.append(f"phase end for last {last} steps {{ compute }}")
    return draft


def magcache(
    name: str, says: str, threshold: float, in_a_row: int, first: str, ratios: tuple[float, ...], sign: str
) -> PolicyDraft:
    """Reuse the residual while the error told by measured magnitude ratios adds up to less than the threshold.

    first: when the first phase holds. sign: `<` or `<=`.
    """
    draft = PolicyDraft(name, says)
    limit = draft.param("threshold", threshold, 0.001, 1.0)
    most = draft.param("patience", max(in_a_row, 1), 1, 100)
    listed = ", ".join(repr(float(ratio)) for ratio in ratios)
    draft.signals.append(f"signal size = table([{listed}]) | cumulative(by = product)")
    draft.signals.append("signal error = abs(1 - size / kept(size))")
    draft.phases.append(f"phase first {first} {{ compute }}")
    draft.phases.append(f"phase cache {{ reuse chunk while accumulate(error) {sign} {limit} at most {most} in a row }}")
    return draft


def first_share(keys: Keys, key: str, default: float) -> str:
    """When MagCache's first phase holds, where the tool gives it as a share of the run."""
    share = keys.number(key, default)
    if not 0 < share < 1:
        raise keys.refuse(key, "a share between 0 and 1")
    return f"while fraction < {100 * share:g}%"


def first_blocks(front: int, back: int, stand_in: str, keep: str = "residual") -> tuple[str, ...]:
    """The first blocks judge, the last ones mend, and those between are cached."""
    ahead = f"layers blocks[{'0' if front == 1 else f'0..{front - 1}'}] {{ compute }}"
    between = f"layers blocks[{front}..{'' if back == 0 else -back - 1}] {{ keep {keep}{stand_in} }}"
    behind = () if back == 0 else (f"layers blocks[{'-1' if back == 1 else f'-{back}..-1'}] {{ compute }}",)
    return (ahead, between, *behind)
