"""Lowers a CapturedModel under a PolicyIR: finds regions and branches, builds decision graphs, and runs the passes."""

from __future__ import annotations

from collections.abc import Mapping

from mccompile import ir
from mccompile.capture.types import Along, CapturedModel, Refusal
from mccompile.language.walk import all_rules, block_read, cell_of, forecasts_of, merges, rules_of
from mccompile.lowering.decide import DecideSpec, build_decide
from mccompile.lowering.each import apart
from mccompile.lowering.errors import NoWindow, SourceNotFound
from mccompile.lowering.locate import locate, sources_read, static_sources
from mccompile.lowering.observe import build_observe
from mccompile.lowering.passes import APPROXIMATE, EXACT
from mccompile.lowering.pipeline import Form, Pieces, WatchPasses, run_passes
from mccompile.lowering.regions import partition
from mccompile.lowering.sources import Located
from mccompile.lowering.split import split
from mccompile.lowering.types import LoweredModel, RowForms
from mccompile.lowering.windows import outside_windows
from mccompile.policy.evaluate import static_changes
from mccompile.policy.groups import group_of, groups, own_branches, policy_of, views

ONLY_COMPUTES = (
    "computes every step of this model and reuses nothing: some tokens are always picked, and a step that computes "
    "some of them computes all"
)


def lower(
    captured: CapturedModel,
    policy: ir.PolicyIR,
    proved: frozenset[str] = frozenset(),
    fold: bool = True,
    watch: WatchPasses | None = None,
) -> LoweredModel:
    """Rewrites the captured graph under the policy.

    proved: masks that were found to be prefixes (attention.prefix_lengths) at the probe sizes.
    fold: changes of static sources come from the planner's table. Without it the graph measures them, and the
    decisions are the same. watch: sees every step of every pass; `spec.verifying` is one.
    Raises LayersNotFound, LayersOverlap, SublayerNotFound, SourceNotFound and NoWindow, and whatever `watch` raises.
    """  # fmt: skip
    whole, policy = captured, apart(policy, len(captured.blocks))
    parts = split(whole, policy)
    captured, regions = parts.captured, partition(parts, policy)
    located = locate(captured, policy, regions, parts.watched)
    static = static_sources(captured, located)
    pieces = Pieces.of(captured, policy, proved)
    for step in run_passes((*EXACT, *APPROXIMATE), pieces):
        if watch is not None:
            watch(step, pieces)
        if step.name == "modulated_input" and step.refusal and step.place[1] == captured.blocks[0].kind:
            source = next(s for s in sources_read(policy) if s.name == "modulated_input")
            raise SourceNotFound(policy.name, captured.model_class, source, step.refusal.reason)
    _check_window(pieces)
    supplied = frozenset(static_changes(policy, static)) if fold else frozenset()
    rows = _row_forms(pieces)
    return LoweredModel(
        captured=captured, whole=whole, pieces=parts.pieces, policy=policy, regions=regions, located=located,
        static=static,
        plain=pieces.per_kind(Form.PLAIN), postlude=pieces.parts[Form.POSTLUDE, 0], rows=rows,
        modulated=pieces.parts.get((Form.MODULATED, captured.blocks[0].kind)),
        decides=_decides(policy, located, supplied),
        observe=build_observe(policy, located["block_output"]) if "block_output" in located else None,
        together=policy.branches.share_decision if policy.branches.batch and not _apart(captured, policy) else None,
        refusals=captured.refusals + _refused(captured, policy, rows is not None),
    )  # fmt: skip


def _check_window(pieces: Pieces) -> None:
    """Raises NoWindow (MC0508) where the policy has a window and some attention of the model would not heed it."""
    captured, window = pieces.captured, pieces.policy.cache.window
    if window is not None:
        why = outside_windows(captured, [part for (form, _), part in pieces.parts.items() if form is Form.ROWS])
        if why:
            raise NoWindow(pieces.policy.name, captured.model_class, window, why)


def _decides(
    policy: ir.PolicyIR, located: Mapping[ir.SourceName, Located], supplied: frozenset[ir.Change]
) -> Mapping[str, DecideSpec | None]:
    """The decision graph of each view. Views with the same rules have the same one: blocks that decide apart."""
    made: dict[tuple[tuple[ir.Phase, ...], bool], DecideSpec | None] = {}
    found: dict[str, DecideSpec | None] = {}
    for view in views(policy):
        own, merged = policy_of(policy, view), merges(r for r in policy.regions if group_of(r) == view.group)
        if (own.phases, merged) not in made:
            made[own.phases, merged] = build_decide(own, located, supplied, merged)
        found[view.name] = made[own.phases, merged]
    return found


def _row_forms(pieces: Pieces) -> RowForms | None:
    if (Form.GATHER, 0) not in pieces.parts:
        return None
    return RowForms(
        gather=pieces.parts[Form.GATHER, 0],
        partial=pieces.per_kind(Form.ROWS),
        once=tuple(pieces.parts.get((Form.ONCE, i)) for i in range(len(pieces.captured.kinds))),
        allocate=pieces.per_kind(Form.ALLOCATE),
        prefixes=pieces.proved,
    )


def _refused(captured: CapturedModel, policy: ir.PolicyIR, rows: bool) -> tuple[Refusal, ...]:
    """Returns what the policy asks for and cannot have on this model."""
    finer = [p.name for p in policy.phases if any(cell_of(rule) > ir.Granularity.STEP for rule in rules_of(p))]
    apart = _apart(captured, policy) if policy.branches.batch else ""
    found = (Refusal(f"branches of {policy.name}", f"run one after the other: {apart}"),) if apart else ()
    if rows or not finer:
        return found
    why = "; ".join(f"{r.site}: {r.reason}" for r in captured.refusals) or "the model's token grid is not known"
    site = f"phase {', '.join(finer)} of {policy.name}"
    found = (*found, Refusal(site, f"decided per step instead of per cell: {why}"))
    return (*found, Refusal(f"policy {policy.name}", ONLY_COMPUTES)) if _only_computes(policy) else found


def _only_computes(policy: ir.PolicyIR) -> bool:
    """Whether a policy that decides per step computes every step, though it is not meant to."""
    rules = all_rules(policy)
    top_alone = all(isinstance(r, ir.Compute | ir.Top) for r in rules) and any(isinstance(r, ir.Top) for r in rules)
    return top_alone or merges(policy.regions)


def _apart(captured: CapturedModel, policy: ir.PolicyIR) -> str:
    """Says why two guidance branches cannot run as one batch, or "" if they can."""
    if forecasts_of(policy):
        return "each branch forecasts from its own last results, and their rows are not saved meanwhile"
    if any(isinstance(region.where, ir.WholeModel) for region in policy.regions):
        return "each branch keeps what the model has returned to it"
    if own_branches(policy):
        return "the branches have rules of their own"
    if block_read(policy) is not None:
        return "each branch keeps what a block has given it"
    if len(groups(policy)) > 1:
        return "regions with names decide apart, and both branches run on one list of rows"
    if policy.cache.budget is not None:
        return "under a byte budget there is no room for the rows of the other branch, which are saved meanwhile"
    if not captured.samples:
        return captured.unbatched or "the model was captured at one number of samples"
    ports = (*captured.shared, *captured.sources, *captured.streams)
    odd = [p.name for p in ports if p.depends and p.batch not in (None, Along(0))]
    return f"samples of {', '.join(odd)} do not lie along the first axis" if odd else ""
