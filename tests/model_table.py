"""The table of docs/models.md: what each family of the zoo allows, from real runs with tiny random weights.

`python -m tests.model_table` writes the table into the page (about a minute for each model); with names, it prints the
rows of these families alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mccompile import api
from mccompile.capture.types import CapturedModel, OneFrame, PlacedGrid, ToldGrid
from mccompile.diagnostics.failure import Failure
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from tests.zoo import FAMILIES, Call, Family
from tests.zoo_more import MORE

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
HEAD = "| model | capture | grid | step | chunk | token | samples | reason |"
ALL = {**FAMILIES, **{family.name: family for family in MORE}}
RAW = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, ImportError,
    StopIteration,
)  # fmt: skip  # what must never leave mccompile without a code
STEPS = 4
GRID = Grid(STEPS, (900.0, 700.0, 500.0, 300.0), (0.9, 0.7, 0.5, 0.3))
STEPWISE = "policy steps {\n  phase rest { compute every 2 steps }\n  layers blocks[*] { keep residual }\n}\n"
BY_CHUNK = """policy chunks {
  signal drift = rel_l1(embedded)
  phase warmup for 1 step { compute }
  phase rest { reuse chunk while drift < 1000 }
  layers blocks[*] { keep residual }
}
"""
TOKENS = """policy tokens {
  param part = 100% in 0%..100%
  signal motion = frame_diff(embedded)
  phase warmup for 1 step { compute }
  phase rest { compute top part of tokens by motion }
  layers blocks[*] { keep residual }
}
"""


class _Runs:
    """One captured family, and runs of policies on it at a size that capture never saw."""

    def __init__(self, family: Family) -> None:
        self.family, self.model = family, family.model(torch.float32)
        one, two, _ = family.sizes
        self.prepared = api.prepare(self.model, probe=self.call(one), second=self.call(two))

    def call(self, size: tuple[int, int, int], samples: int = 1, seed: int = 0) -> Call:
        return self.family.call(size, samples, torch.float32, seed)

    def run(self, policy: str, samples: int = 1, **parameters: float) -> tuple[CompiledModel, float]:
        """The policy over a few steps of one prompt, and the greatest difference from the model itself."""
        clock = Timeline("run", GRID, steps_in_order(GRID))
        text = Source("test.policy", policy) if "{" in policy else policy
        compiled = api.compile(
            self.model, text, captured=self.prepared, clock=clock, backend="eager", **parameters  # type: ignore[arg-type]
        )  # fmt: skip
        size, worst = self.family.sizes[2], 0.0
        first = self.call(size, samples)
        latent = "x" if "x" in first else "latent" if "latent" in first else "hidden_states"
        for clock.row in range(STEPS):
            call = first | {latent: self.call(size, samples, clock.row)[latent]}
            with torch.no_grad():
                pairs = zip(_tensors(compiled(**call)), _tensors(self.model(**call)), strict=True)
                worst = max(worst, *(float((a - b).abs().max() / b.abs().max()) for a, b in pairs))
        return compiled, worst

    def takes(self, samples: int) -> bool:
        """Whether the model itself takes so many samples in a call."""
        try:
            with torch.no_grad():
                self.model(**self.call(self.family.sizes[2], samples))
        except (RuntimeError, ValueError, TypeError):
            return False
        return True

    def says(self, policy: str, wanted: str, samples: int = 1, exact: bool = False) -> str:
        """ "yes" where the policy does what is wanted, "no" where it computes everything, else a code."""
        if not self.takes(samples):
            return "–"
        try:
            compiled, worst = self.run(policy, samples)
        except Failure as failure:
            return failure.diagnostics[0].code
        actions = {event.action for event in compiled.events}
        assert not exact or worst < 1e-4, f"{self.family.name} differs by {worst}"
        if wanted == "rows":
            return "yes" if compiled.runner.engine.uses_rows else "no"
        return "yes" if wanted in actions else "no"


def _tensors(result: object) -> list[torch.Tensor]:
    found = torch.utils._pytree.tree_leaves(result)
    return [x for x in found if isinstance(x, torch.Tensor)]


def row(family: Family) -> str:
    """The line of one family."""
    try:
        runs = _Runs(family)
    except Failure as failure:
        what = failure.diagnostics[0]
        return f"| {family.name} | no | – | – | – | – | – | {what.code}: {short(what.message())} |"
    captured = runs.prepared.model
    _, worst = runs.run("compute")
    assert worst == 0, f"{family.name}: the policy compute differs by {worst}"
    cells = (
        family.name,
        "blocks alone" if captured.opaque else "whole",
        _grid(captured),
        runs.says(STEPWISE, "reuse"),
        runs.says(BY_CHUNK, "reuse"),
        runs.says(TOKENS, "rows", exact=True),
        runs.says("compute", "full", samples=2, exact=True),
        short(_reason(captured)) or "–",
    )
    return f"| {' | '.join(cells)} |"


def _grid(captured: CapturedModel) -> str:
    match captured.grid:
        case None:
            return "no"
        case OneFrame():
            return "one frame"
        case ToldGrid() | PlacedGrid():
            return "told"
    return "found"


def _reason(captured: CapturedModel) -> str:
    """The first refusal; of a model whose blocks are its own code without torch's own words."""
    if captured.opaque:
        return captured.opaque.partition(":")[0]
    return captured.refusals[0].reason.partition(" (")[0] if captured.refusals else captured.unbatched


def short(text: str) -> str:
    """A reason in one line."""
    words = " ".join(text.replace("|", "/").split())
    return words if len(words) <= 160 else f"{words[:157]}..."


def main(names: list[str]) -> None:
    """Prints the rows of some families, or writes those of all into the page."""
    if names:
        sys.stdout.write("".join(f"{row(ALL[name])}\n" for name in names))
        return
    lines = PAGE.read_text().splitlines()
    start = lines.index(HEAD) + 2
    stop = next(i for i in range(start, len(lines) + 1) if i == len(lines) or not lines[i].startswith("|"))
    PAGE.write_text("\n".join([*lines[:start], *(row(family) for family in ALL.values()), *lines[stop:]]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
