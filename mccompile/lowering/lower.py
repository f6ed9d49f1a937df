"""CapturedModel and PolicyIR to LoweredModel: regions, branches, decision and motion nodes."""

from __future__ import annotations

from mccompile.capture.types import CapturedModel, Refusal
from mccompile.lowering.decide import build_decide, dynamic_phases, rule_expressions, walk
from mccompile.lowering.locate import locate, static_sources
from mccompile.lowering.observe import build_observe
from mccompile.lowering.plain import drop_buffers
from mccompile.lowering.segments import partition
from mccompile.lowering.types import LoweredModel
from mccompile.policy import ir


def lower(captured: CapturedModel, policy: ir.PolicyIR, fold: bool = True) -> LoweredModel:
    """Rewrites the captured graph under the policy.

    fold: changes of static sources come from the planner's table; otherwise from graph nodes (same decisions).
    Raises LayersNotFound and SourceNotFound.
    """
    segments = partition(captured, policy)
    located = locate(captured, policy, segments)
    static = static_sources(captured, located)
    rows = captured.gather is not None and captured.grid is not None
    rows = rows and all(k.partial is not None for k in captured.kinds)
    supplied = static_changes(policy, static) if fold else frozenset()
    decide = build_decide(policy, located, supplied)
    observe = build_observe(policy, located["block_output"]) if "block_output" in located else None
    plain = tuple(
        drop_buffers(kind, _inputs_of(captured, number)) for number, kind in enumerate(captured.kinds)
    )
    return LoweredModel(
        captured=captured, policy=policy, segments=segments, located=located, static=static, plain=plain,
        rows=rows, decide=decide, observe=observe, refusals=captured.refusals + _refused(captured, policy, rows),
    )  # fmt: skip


def static_changes(policy: ir.PolicyIR, static: frozenset[str]) -> frozenset[ir.Change]:
    """The changes whose values the planner can know."""
    signals = {s.name: s for s in policy.signals}
    found = (e for _, r in dynamic_phases(policy) for x in rule_expressions(r) for e in walk(x, signals))
    return frozenset(e for e in found if isinstance(e, ir.Change) and e.of.name in static)


def _inputs_of(captured: CapturedModel, kind: int) -> int:
    site = next(b for b in captured.blocks if b.kind == kind)
    return len(site.streams_in) + len(site.shared)


def _refused(captured: CapturedModel, policy: ir.PolicyIR, rows: bool) -> tuple[Refusal, ...]:
    """What the policy asks for and cannot have on this model."""
    finer = [
        p.name
        for p in policy.phases
        if isinstance(p.rule, ir.Top)
        or (isinstance(p.rule, ir.Reuse) and p.rule.granularity > ir.Granularity.STEP)
    ]
    if rows or not finer:
        return ()
    why = "; ".join(f"{r.site}: {r.reason}" for r in captured.refusals) or "the model's token grid is not known"
    return (Refusal(f"phase {', '.join(finer)} of {policy.name}", f"decided per step instead of per cell: {why}"),)
