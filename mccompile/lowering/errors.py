"""Errors of lowering (MC05xx): a policy and a model that do not fit each other."""

from __future__ import annotations

from mccompile.diagnostics.failure import StatedFailure


class LoweringError(StatedFailure):
    """Base of the refusals that stop a compile: a code, then place, cause and remedy."""

    code = "MC0500"


class LayersNotFound(LoweringError):
    """A region names blocks that the model does not have."""

    code = "MC0501"

    def __init__(self, policy: str, model: str, first: int, last: int, count: int) -> None:
        super().__init__(
            f"`layers blocks[{first}..{last}]` of policy `{policy}` matches no range of {model}, which has "
            f"{count} blocks",
            f"use indices from 0 to {count - 1}, or count from the end with -1 to -{count}",
        )


class SourceNotFound(LoweringError):
    """A rule reads a source that the captured graph does not have."""

    code = "MC0502"

    def __init__(self, policy: str, model: str, source: str, reason: str) -> None:
        super().__init__(
            f"policy `{policy}` reads `{source}`, which was not found in {model}: {reason}",
            "read another source, or use a policy written for this kind of model",
        )


class DeniedRefusals(LoweringError):
    """Something was refused and the caller asked for refusals to be fatal."""

    code = "MC0503"

    def __init__(self, refusals: tuple[str, ...]) -> None:
        super().__init__(
            "the policy cannot run as written on this model:\n  " + "\n  ".join(refusals),
            "allow refusals to run the policy at a coarser granularity, or choose a policy that fits",
        )


class BudgetUnmet(LoweringError):
    """A byte budget that no measure meets."""

    code = "MC0504"

    def __init__(self, policy: str, budget: int, least: int, measure: str) -> None:
        super().__init__(
            f"policy `{policy}` may keep {budget:,} bytes, and would keep at least {least:,} ({measure})",
            "raise `cache { budget: ... }`, leave its other words at `auto`, or compile for a smaller size (call=...)",
        )
