"""Lowers the rules of a policy to a graph that decides which tokens of which chunks are computed in a call.

The functions below are traced over the policy's expressions, and the graph is compiled with the others. What only the
clock knows arrives in one small tensor, `host` [B, K, G]. The parameters arrive in one vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from mccompile import ir
from mccompile.language.walk import cell_of, own_stand_ins, walk, walk_rule, weighing_signals
from mccompile.lowering.expressions import Leaves, evaluate, frame_difference, last_frames
from mccompile.lowering.fire import fire
from mccompile.lowering.host import AccountRow, ChangeRow, ClockRow, DepthRow, Flag, FlagName, HostRow, TableRow
from mccompile.lowering.measured import MeasuredRow, rows_of, told_by
from mccompile.lowering.moments import Moments
from mccompile.lowering.pasts import Get, Pasts
from mccompile.lowering.running import ChunkStep, RunningMeans
from mccompile.lowering.slots import (
    ChosenWay,
    Count,
    DecidedBy,
    Host,
    Late,
    LikeAnchors,
    Mask,
    Now,
    Params,
    Places,
    Slot,
    SourceBefore,
    Tail,
    identifier,
)
from mccompile.lowering.sources import Located, to_cells
from mccompile.lowering.trace_fx import build_graph
from mccompile.policy.facts import account_names

CLOCKS: tuple[ir.ClockName, ...] = ("step", "fraction", "timestep", "sigma")
FLAGS: tuple[FlagName, ...] = ("active", "forced", "reused", "phase", "known", "first", "tail")


@dataclass(frozen=True, slots=True)
class DecideSpec:
    """A decision graph and how to feed it.

    inputs, outputs: in order (lowering/slots.py). Counts and what is kept of sources go in and come out. The first
    outputs are the mask (True = compute) and what it was made by, then which alternative stands in where rules say it.
    measured: the rows of `DecidedBy`. weights: those that stand-ins of kept results are weighed by.
    host: the rows of `host`. params: names of the entries of `params`.
    told_after: where that lies which a call tells when it is over, if earlier ones are compared; the run keeps them.
    """

    module: fx.GraphModule
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    host: tuple[HostRow, ...]
    params: tuple[str, ...]
    counts: tuple[Count, ...]
    sources: tuple[Located, ...]
    measured: tuple[MeasuredRow, ...]
    weights: tuple[MeasuredRow, ...] = ()
    told_after: tuple[Located, ...] = ()


def dynamic_phases(policy: ir.PolicyIR) -> tuple[tuple[int, ir.Reuse | ir.Top], ...]:
    """Returns the phases whose rule needs the graph, each with its index."""
    return tuple((i, p.rule) for i, p in enumerate(policy.phases) if isinstance(p.rule, ir.Reuse | ir.Top))


def build_decide(
    policy: ir.PolicyIR, located: Mapping[ir.SourceName, Located], supplied: frozenset[ir.Change],
    merges: bool = False,
) -> DecideSpec | None:
    """Builds the decision graph of `policy`. Returns None if the clock decides everything.

    supplied: changes whose values the host knows (folded). merges: tokens take from computed ones of their chunk, so a
    chunk of which nothing is selected is computed. Raises KeyError for a source not located.
    """  # fmt: skip
    rules = dynamic_phases(policy)
    if not rules:
        return None
    signals = {s.name: s for s in policy.signals}
    weighing = weighing_signals(policy)
    seen = (e for _, rule in rules for e in walk_rule(rule, signals, late=False))
    found = list(dict.fromkeys((*seen, *(e for signal in weighing for e in walk(signal, signals)))))
    changes = [e for e in found if isinstance(e, ir.Change)]
    measured = [e for e in changes if e not in supplied]
    motions = [e for e in found if isinstance(e, ir.FrameDiff)]
    alike = tuple(dict.fromkeys(LikeAnchors(e.of.name, e.stride) for e in found if isinstance(e, ir.Similarity)))
    tables = tuple(e for e in found if isinstance(e, ir.Table | ir.Cumulative))
    pasts = Pasts.of(rules, signals)
    folded = tuple(e for e in changes if e in supplied)
    late = sorted({e.name for e in found if isinstance(e, ir.SignalRef) and signals[e.name].late})
    accounts = account_names(policy)
    counts = [Count("account", name) for name in accounts]
    counts += [Count("streak")] if any(r.max_consecutive is not None for _, r in rules) else []
    counts += [Count("total")] if any(r.max_total is not None for _, r in rules) else []
    moments = Moments.of(measured, motions)
    names = list(dict.fromkeys([e.of.name for e in measured] + [m.of.name for m in motions]))
    told_after = [n for n in ir.TOLD_AFTER if n in names]
    names = [n for n in names if n not in told_after]
    kept: list[SourceBefore | Tail] = [slot for slot in moments.slots if slot.source not in told_after]
    results = [slot for slot in moments.slots if slot.source in told_after]
    kept += list(dict.fromkeys(Tail(m.of.name) for m in motions if m.a is None))
    running = RunningMeans.of(found)
    looks_back = pasts.slots or running.slots or any(slot.n > 1 for slot in moments.slots)
    flags: tuple[FlagName, ...] = (*FLAGS, "fresh") if looks_back else FLAGS
    host: tuple[HostRow, ...] = (*map(Flag, flags), *map(AccountRow, accounts), *map(ClockRow, CLOCKS))
    host += (DepthRow(),) if any(isinstance(e, ir.Depth) for e in found) else ()
    host += (*map(TableRow, tables), *map(ChangeRow, folded))
    places = (Places(),) if moments.gains or any(isinstance(e, ir.Around | ir.Area) for e in found) else ()
    before = (*kept, *results, *pasts.slots, *running.slots)
    inputs = (Host(), Params(), *places, *counts, *(Now(n) for n in names), *alike, *before, *(Late(n) for n in late))
    ways = (ChosenWay(),) if any(own_stand_ins(rule) for _, rule in rules) else ()
    outputs = (Mask(), DecidedBy(), *ways, *counts, *kept, *pasts.slots, *running.slots)
    now = dict.fromkeys((*names, *(one.source for one in alike)))
    weights = tuple(MeasuredRow("signal", signal.name) for signal in weighing)
    told = tuple(dict.fromkeys((*(row for _, rule in rules for row in rows_of(rule, signals)), *weights)))
    spec = DecideSpec(
        module=fx.GraphModule(torch.nn.Module(), fx.Graph()), inputs=inputs, outputs=outputs, host=host,
        params=tuple(p.name for p in policy.params), counts=tuple(counts),
        sources=tuple(located[n] for n in now), measured=told, weights=weights,
        told_after=tuple(located[n] for n in told_after),
    )  # fmt: skip
    lates = tuple(late)
    todo = _Decision(policy, spec, dict(rules), tuple(measured), tuple(motions), lates, pasts, moments, running, merges)
    module = build_graph([identifier(n) for n in inputs], todo.run, [identifier(n) for n in outputs])
    return replace(spec, module=module)


@dataclass(frozen=True, slots=True)
class _Decision:
    """The function that is traced, and what it needs to know while it is traced."""

    policy: ir.PolicyIR
    spec: DecideSpec
    rules: Mapping[int, ir.Reuse | ir.Top]
    measured: tuple[ir.Change, ...]
    motions: tuple[ir.FrameDiff, ...]
    late: tuple[str, ...]
    pasts: Pasts
    moments: Moments
    running: RunningMeans
    merges: bool

    def run(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        def get(slot: Slot) -> torch.Tensor:
            return given[identifier(slot)]

        host = get(Host())

        def row(what: HostRow) -> torch.Tensor:
            return host[:, self.spec.host.index(what)].unsqueeze(-1).unsqueeze(-1)

        def flag(what: FlagName) -> torch.Tensor:
            return row(Flag(what))

        active, forced, reused = flag("active") > 0, flag("forced") > 0, flag("reused") > 0
        held = [count for count in self.spec.counts if count.of == "account"]
        known = flag("known") > 0
        accounts = {c.into: torch.where(known, row(AccountRow(c.into)), get(c)) for c in held}
        account = accounts["account"]
        read = [loc for loc in self.spec.sources if Now(loc.source) in self.spec.inputs]
        cells = {loc.source: to_cells(get(Now(loc.source)), loc, account) for loc in read}
        out: dict[Slot, torch.Tensor] = {}
        params = {p: get(Params())[i] for i, p in enumerate(self.spec.params)}
        clock: dict[str, torch.Tensor] = {c: row(ClockRow(c)) for c in CLOCKS}
        clock |= {"depth": row(DepthRow())} if DepthRow() in self.spec.host else {}
        tables = {r.table: row(r) for r in self.spec.host if isinstance(r, TableRow)}
        signals = {s.name: s for s in self.policy.signals}
        places = get(Places()) if Places() in self.spec.inputs else None
        known_now = Leaves(params, clock, tables, {}, {}, {}, signals, {}, places=places)
        values = self.moments.values(cells, get, known_now)
        changes = {r.change: row(r) for r in self.spec.host if isinstance(r, ChangeRow)}
        changes |= {c: values.change(c) for c in self.measured}
        fresh = flag("fresh") > 0 if Flag("fresh") in self.spec.host else None
        if self.pasts.slots or self.running.slots:
            # Nothing was seen before a chunk's first step, nor before the first call that it is in.
            assert fresh is not None
            seen = (row(ClockRow("step")) > 0.0) & ~fresh
            changes = {c: torch.where(seen, v, v * 0.0) for c, v in changes.items()}
        motions = {}
        for m in self.motions:
            if m.a is not None:
                past = values.earlier(m)
                nothing_before = torch.ones_like(account).amax((2, 3), keepdim=True) * 0.0 > 0
                motions[m] = frame_difference(past, past[:, :, -1], nothing_before, ~nothing_before, m.relative)
                continue
            now = cells[m.of.name]
            last = last_frames(now, get(Tail(m.of.name)), active)
            motions[m] = frame_difference(now, last[:, :-1], flag("tail") > 0, flag("first") > 0, m.relative)
            out[Tail(m.of.name)] = last
        late = {n: get(Late(n)) for n in self.late}
        alike = {slot: get(slot) for slot in self.spec.inputs if isinstance(slot, LikeAnchors)}
        leaves = replace(known_now, changes=changes, motions=motions, late=late, accounts=accounts, alike=alike)
        if fresh is not None:
            told_of = ChunkStep(row(ClockRow("step")), active, fresh)
            means, out_of_means = self.running.run(leaves, get, told_of, account * 0.0)
            leaves = replace(leaves, pasts=means)
            out |= out_of_means
        numbers = {e: evaluate(e, leaves) + account * 0.0 for e in self.pasts.numbers}
        mask, grown, told, way = self._mask(leaves, flag("phase"), get, numbers)
        compute = active & (forced | (mask & ~reused))
        if self.merges:
            compute = compute | (active & ~compute.any(-1, True).any(-2, True))
        moving = active & ~forced & ~reused
        out[Mask()] = compute
        nothing = torch.zeros_like(account).amax((2, 3))  # where no rule tells anything
        if ChosenWay() in self.spec.outputs:
            out[ChosenWay()] = way
        out[DecidedBy()] = torch.stack([told.get(r, nothing) for r in self.spec.measured] or [nothing], 1)
        for count in held:
            moved = torch.where(moving, grown[count.into], accounts[count.into])
            out[count] = torch.where(compute, torch.zeros_like(moved), moved)
        for count in self.spec.counts[len(held) :]:
            kept = get(count)
            more = torch.where(active & ~compute, kept + 1.0, kept)
            out[count] = more if count.of == "total" else torch.where(compute, kept * 0.0, more)
        for slot in self.spec.outputs:
            if isinstance(slot, SourceBefore):
                out[slot] = values.after(slot, active, compute.any(-1, True).any(-2, True), fresh)
        out |= self.pasts.after(numbers, get, active, compute, fresh)
        return {identifier(slot): value for slot, value in out.items()}

    def _mask(
        self, leaves: Leaves, phase: torch.Tensor, get: Get, numbers: Mapping[ir.Expr, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[MeasuredRow, torch.Tensor], torch.Tensor]:
        """Returns what fires, accounts with what this step adds, what both were made by, and ways, by the phase."""
        fired, way, held = None, None, dict[str, torch.Tensor]()
        told: dict[MeasuredRow, torch.Tensor] = {}
        for index, rule in self.rules.items():
            own = replace(leaves, pasts={**leaves.pasts, **self.pasts.read(cell_of(rule), numbers, get)})
            found = fire(rule, own, get)
            here = phase == float(index)
            fired = found.cells if fired is None else torch.where(here, found.cells, fired)
            way = found.way if way is None else torch.where(here, found.way, way)
            held = {n: torch.where(here, v, held[n]) if held else v for n, v in found.accounts.items()}
            for row in dict.fromkeys((*rows_of(rule, leaves.signals), *self.spec.weights)):
                value = told_by(row, own, found.accounts, found.acted)
                told[row] = torch.where(here.squeeze(-1).squeeze(-1), value, told.get(row, torch.zeros_like(value)))
        assert fired is not None
        assert way is not None
        return fired, held, told, way
