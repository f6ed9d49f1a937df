"""CapturedModel and PolicyIR to LoweredModel: regions, branches, decision and motion nodes."""

from __future__ import annotations

from mccompile import ir
from mccompile.capture.types import Along, CapturedModel, Refusal
from mccompile.lowering.attention import attention_masks, use_prefixes
from mccompile.lowering.coarse import expose, find_coarse, pick_inside
from mccompile.lowering.decide import build_decide
from mccompile.lowering.errors import SourceNotFound
from mccompile.lowering.hoist import Hoisted, hoist
from mccompile.lowering.interleave import interleave
from mccompile.lowering.kept import keep_allocated, keep_encoded
from mccompile.lowering.locate import TIMESTEP, latent_inputs, locate, sources_read, static_sources
from mccompile.lowering.modulated import modulated_input
from mccompile.lowering.observe import build_observe
from mccompile.lowering.plain import drop_buffers
from mccompile.lowering.segments import partition
from mccompile.lowering.strip import Slim, strip_unused
from mccompile.lowering.types import LoweredModel, RowForms
from mccompile.policy.evaluate import static_changes
from mccompile.policy.facts import cell_of


def lower(
    captured: CapturedModel, policy: ir.PolicyIR, proved: frozenset[str] = frozenset(), fold: bool = True
) -> LoweredModel:
    """Rewrites the captured graph under the policy.

    proved: masks that were found to be prefixes (attention.prefix_lengths) at the probe sizes.
    fold: changes of static sources come from the planner's table; otherwise from graph nodes (same decisions).
    Raises LayersNotFound, LayersOverlap and SourceNotFound.
    """
    segments = partition(captured, policy)
    located = locate(captured, policy, segments)
    static = static_sources(captured, located)
    rows = row_forms(captured, proved, policy.cache.dtype)
    supplied = frozenset(static_changes(policy, static)) if fold else frozenset()
    decide = build_decide(policy, located, supplied)
    observe = build_observe(policy, located["block_output"]) if "block_output" in located else None
    plain = tuple(
        strip_unused(drop_buffers(kind, _inputs_of(captured, number))) for number, kind in enumerate(captured.kinds)
    )
    modulated = None
    if "modulated_input" in located:
        rows_of = {p.name: p.rows for p in captured.streams}
        video = next((i for i, s in enumerate(captured.blocks[0].streams_in) if rows_of[s] == "video"), 0)
        modulated = modulated_input(plain[captured.blocks[0].kind], video)
        if modulated is None:
            reason = "the queries of its first block come from no linear layer"
            source = next(s for s in sources_read(policy) if s.name == "modulated_input")
            raise SourceNotFound(policy.name, captured.model_class, source, reason)
    return LoweredModel(
        captured=captured, policy=policy, segments=segments, located=located, static=static, plain=plain,
        masks=attention_masks(captured),
        rows=rows, decide=decide, observe=observe, modulated=modulated,
        together=policy.branches.share_decision if policy.branches.batch and not _apart(captured, policy) else None,
        refusals=captured.refusals + _refused(captured, policy, rows is not None),
    )  # fmt: skip


def row_forms(captured: CapturedModel, proved: frozenset[str], kept: ir.KeptDtype = "model") -> RowForms | None:
    """The partial forms with attention over prefixes, and a gather of only what they still read.

    kept: the dtype of keys and values between calls.
    """
    partials = [k.partial for k in captured.kinds if k.partial is not None]
    if captured.gather is None or captured.grid is None or len(partials) != len(captured.kinds):
        return None
    coarse = find_coarse(captured)
    found = []
    for number, partial in enumerate(partials):
        site = next(b for b in captured.blocks if b.kind == number)
        picking = pick_inside(use_prefixes(partial, proved), site, coarse)
        interleave(picking.graph)
        found.append(_hoisted(captured, number, strip_unused(picking), len(coarse), kept))
    read: set[str] = set()
    for block in captured.blocks:
        names = (*block.streams_in, *block.shared)
        read |= {names[i] for i in found[block.kind].rest.kept if i < len(names)}
    coarse_names = {c.name for c in coarse}
    wanted = [i for i, name in enumerate(captured.gathered) if name in read - coarse_names]
    more = range(len(captured.gathered), len(captured.gathered) + len(captured.row_keys) + len(coarse))
    gather = strip_unused(expose(captured.gather, coarse), (*wanted, *more))
    return RowForms(
        gather, tuple(captured.gathered[i] for i in wanted), tuple((c.name, c.source) for c in coarse),
        tuple(h.rest for h in found), tuple(h.once for h in found),
        tuple(keep_allocated(k.allocate, kept) for k in captured.kinds), proved,
    )  # fmt: skip


def _hoisted(captured: CapturedModel, number: int, partial: Slim, picks: int, kept: ir.KeptDtype) -> Hoisted:
    """The row form of a kind without what the prompt alone determines, in every block of that kind."""
    kind, sites = captured.kinds[number], [b for b in captured.blocks if b.kind == number]
    changing = latent_inputs(captured) | {TIMESTEP}
    lasting_values = {p.name for p in captured.shared if p.token_axis is None and not p.depends & changing}
    streams = len(sites[0].streams_in)
    lasting = [all(b.shared[i] in lasting_values for b in sites) for i in range(len(sites[0].shared))]
    first = streams + len(lasting) + len(kind.row_keys) + len(kind.buffers)
    weights = range(first, first + len(sites[0].weights))
    given = frozenset(streams + i for i, lasts in enumerate(lasting) if lasts)
    places = weights.stop + 1 + picks
    apart = hoist(partial, given, weights, places)
    return Hoisted(*keep_encoded(apart.rest, apart.once, places, kept))


def _inputs_of(captured: CapturedModel, kind: int) -> int:
    site = next(b for b in captured.blocks if b.kind == kind)
    return len(site.streams_in) + len(site.shared)


def _refused(captured: CapturedModel, policy: ir.PolicyIR, rows: bool) -> tuple[Refusal, ...]:
    """What the policy asks for and cannot have on this model."""
    finer = [p.name for p in policy.phases if cell_of(p.rule) > ir.Granularity.STEP]
    apart = _apart(captured, policy) if policy.branches.batch else ""
    found = (Refusal(f"branches of {policy.name}", f"run one after the other: {apart}"),) if apart else ()
    if rows or not finer:
        return found
    why = "; ".join(f"{r.site}: {r.reason}" for r in captured.refusals) or "the model's token grid is not known"
    site = f"phase {', '.join(finer)} of {policy.name}"
    return (*found, Refusal(site, f"decided per step instead of per cell: {why}"))


def _apart(captured: CapturedModel, policy: ir.PolicyIR) -> str:
    """Why two guidance branches cannot run as one batch; "" where they can."""
    if policy.cache.budget is not None:
        return "under a byte budget there is no room for the rows of the other branch, which are saved meanwhile"
    if not captured.samples:
        return captured.unbatched or "the model was captured at one number of samples"
    ports = (*captured.shared, *captured.sources, *captured.streams)
    odd = [p.name for p in ports if p.depends and p.batch not in (None, Along(0))]
    return f"samples of {', '.join(odd)} do not lie along the first axis" if odd else ""
