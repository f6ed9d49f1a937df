"""The plan of a policy beside its text: how many steps each phase computes, and how many it leaves to the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Span
from mccompile.lsp.document import Document
from mccompile.policy.bind import bind
from mccompile.policy.cells import Cell, Plan
from mccompile.policy.flow import DEFAULT_STEPS, flow_grid
from mccompile.policy.planner import plan


@dataclass(frozen=True, slots=True)
class Lens:
    """A line of text at a place."""

    span: Span
    text: str


def lenses(document: Document) -> Iterator[Lens]:
    """One for the policy, and one for each of its own phases; none while something is wrong."""
    policy, parsed = document.policy, document.parsed
    if policy is None or parsed is None or document.merged is None:
        return
    if any(phase.regions or phase.branches for phase in policy.phases):
        what = "branches" if any(phase.branches for phase in policy.phases) else "regions"
        yield Lens(parsed.name.span, f"its {what} decide apart: `mccompile explain` has a plan for each")
        return
    try:
        made = plan(bind(policy, {}), flow_grid(DEFAULT_STEPS), {}, frozenset())
    except PolicyError as error:
        yield Lens(parsed.name.span, f"in {DEFAULT_STEPS} steps: {error.diagnostics[0].message()}")
        return
    yield Lens(parsed.name.span, f"in {DEFAULT_STEPS} steps: {_counted(made.cells)}")
    for index, phase in enumerate(policy.phases):
        written = document.merged.phases.get(phase.name)
        if written is not None and written.span.source == document.source:
            yield Lens(written.name.span, _of_phase(made, index))


def _of_phase(made: Plan, index: int) -> str:
    sure = [cell for cell in made.cells if cell.phase == index]
    perhaps = sum(cell.phase is None for cell in made.cells)
    more = f"; perhaps in {perhaps} further steps" if perhaps else ""
    if not sure:
        return f"perhaps in {perhaps} steps" if perhaps else f"never reached in {len(made.cells)} steps"
    steps = f"step {sure[0].step}" if len(sure) == 1 else f"steps {sure[0].step}..{sure[-1].step}"
    return f"{steps}: {_counted(sure)}{more}"


def _counted(cells: list[Cell] | tuple[Cell, ...]) -> str:
    count = {action: sum(c.action == action for c in cells) for action in ("compute", "reuse", "dynamic")}
    words = {"compute": "computes {}", "reuse": "reuses {}", "dynamic": "leaves {} to the run"}
    return ", ".join(words[action].format(n) for action, n in count.items() if n)
