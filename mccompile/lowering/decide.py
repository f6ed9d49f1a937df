"""The decision as a graph: which tokens of which chunks are computed in this call (policy rules, lowered).

The graph is built by tracing the functions below over the policy's expressions, then compiled with the rest.
Everything that only the clock knows arrives in one small tensor, `host` [B, K, G]; parameters in one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, assert_never

import torch
from torch import fx

from mccompile import ir
from mccompile.language.walk import deciding, rule_expressions, walk
from mccompile.lowering.expressions import Leaves, change, evaluate, frame_difference, last_frames
from mccompile.lowering.operations import apply
from mccompile.lowering.slots import Before, Count, Host, Late, Mask, Measured, Now, Params, Slot, Tail, identifier
from mccompile.lowering.sources import Located, to_cells
from mccompile.lowering.trace_fx import build_graph

CLOCKS = ("step", "fraction", "timestep", "sigma")
Get = Callable[[Slot], torch.Tensor]
Guard = Literal["vote", "hold", "compute all", "at most in a row", "at most in total", "at most of tokens"]
Acted = Mapping[str, torch.Tensor]  # by the name of a guard: whether it changed the decision of a cell, or a chunk
FLAGS = ("active", "forced", "reused", "phase", "known", "account", "first", "tail")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of what is measured, [B, G]. A signal's is the mean over the chunk; a guard's is 1 where it acted.

    highest, lowest: of the accounts of the chunk's cells after the step's addition.
    """

    what: Literal["highest", "lowest", "signal", "guard"]
    name: str = ""


@dataclass(frozen=True, slots=True)
class DecideSpec:
    """A decision graph and how to feed it.

    inputs, outputs: in order (lowering/slots.py). Counts and what is kept of sources go in and come out. The first
    outputs are the mask (True = compute) and what it was made by.
    measured: names of the rows of `Measured`: ACCOUNTS, signals by name, guards by GUARDS.
    host: names of the rows of `host`. params: names of the entries of `params`.
    changes: the changes that the host supplies (static ones, folded) as rows "change:i".
    """

    module: fx.GraphModule
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    host: tuple[str, ...]
    params: tuple[str, ...]
    counts: tuple[Count, ...]
    sources: tuple[Located, ...]
    changes: tuple[ir.Change, ...]
    tables: tuple[ir.Table, ...]
    measured: tuple[Row, ...]


def dynamic_phases(policy: ir.PolicyIR) -> tuple[tuple[int, ir.Reuse | ir.Top], ...]:
    """Phases whose rule needs the graph, by index."""
    return tuple((i, p.rule) for i, p in enumerate(policy.phases) if isinstance(p.rule, ir.Reuse | ir.Top))


def build_decide(
    policy: ir.PolicyIR, located: Mapping[ir.SourceName, Located], supplied: frozenset[ir.Change]
) -> DecideSpec | None:
    """The decision graph of `policy`, or None where the clock decides everything.

    supplied: changes whose values the host knows (folded). Raises KeyError for a source not located.
    """
    rules = dynamic_phases(policy)
    if not rules:
        return None
    signals = {s.name: s for s in policy.signals}
    seen = [e for _, r in rules for x in rule_expressions(r) for e in walk(x, signals, late=False)]
    found = list(dict.fromkeys(seen))
    changes = [e for e in found if isinstance(e, ir.Change)]
    measured = [e for e in changes if e not in supplied]
    motions = [e for e in found if isinstance(e, ir.FrameDiff)]
    tables = tuple(e for e in found if isinstance(e, ir.Table))
    folded = tuple(e for e in changes if e in supplied)
    late = sorted({e.name for e in found if isinstance(e, ir.SignalRef) and signals[e.name].late})
    reuse = [r for _, r in rules if isinstance(r, ir.Reuse)]
    counts = [Count("account")]
    counts += [Count("streak")] if any(r.max_consecutive is not None for r in reuse) else []
    counts += [Count("total")] if any(r.max_total is not None for r in reuse) else []
    names = list(dict.fromkeys([e.of.name for e in measured] + [m.of.name for m in motions]))
    kept: list[Before | Tail] = list(dict.fromkeys(Before(e.of.name, e.since) for e in measured))
    kept += list(dict.fromkeys(Tail(m.of.name) for m in motions))
    host = (*FLAGS, *CLOCKS, *(f"table:{i}" for i in range(len(tables))))
    host += tuple(f"change:{i}" for i in range(len(folded)))
    inputs = (Host(), Params(), *counts, *(Now(n) for n in names), *kept, *(Late(n) for n in late))
    outputs = (Mask(), Measured(), *counts, *kept)
    named = dict.fromkeys(e.name for e in found if isinstance(e, ir.SignalRef))
    guards = dict.fromkeys(name for r in reuse for name, value in guards_of(r).items() if value is not None)
    rows = (Row("highest"), Row("lowest"), *(Row("signal", n) for n in named), *(Row("guard", n) for n in guards))
    spec = DecideSpec(
        module=fx.GraphModule(torch.nn.Module(), fx.Graph()), inputs=inputs, outputs=outputs, host=host,
        params=tuple(p.name for p in policy.params), counts=tuple(counts),
        sources=tuple(located[n] for n in names), changes=folded, tables=tables, measured=rows,
    )  # fmt: skip
    todo = _Decision(policy, spec, dict(rules), tuple(measured), tuple(motions), tuple(late))
    module = build_graph([identifier(n) for n in inputs], todo.run, [identifier(n) for n in outputs])
    return DecideSpec(**{f.name: getattr(spec, f.name) for f in fields(spec)} | {"module": module})


@dataclass(frozen=True, slots=True)
class _Decision:
    """The traced function, with what it needs to know at trace time."""

    policy: ir.PolicyIR
    spec: DecideSpec
    rules: Mapping[int, ir.Reuse | ir.Top]
    measured: tuple[ir.Change, ...]
    motions: tuple[ir.FrameDiff, ...]
    late: tuple[str, ...]

    def run(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        def get(slot: Slot) -> torch.Tensor:
            return given[identifier(slot)]

        host = get(Host())

        def row(name: str) -> torch.Tensor:
            return host[:, self.spec.host.index(name)].unsqueeze(-1).unsqueeze(-1)

        active, forced, reused = row("active") > 0, row("forced") > 0, row("reused") > 0
        account = torch.where(row("known") > 0, row("account"), get(Count("account")))
        cells = {loc.source: to_cells(get(Now(loc.source)), loc, account) for loc in self.spec.sources}
        out: dict[Slot, torch.Tensor] = {}
        changes = {c: row(f"change:{i}") for i, c in enumerate(self.spec.changes)}
        for c in self.measured:
            changes[c] = change(c.distance, cells[c.of.name], get(Before(c.of.name, c.since)), c.over)
        motions = {}
        for m in self.motions:
            now = cells[m.of.name]
            last = last_frames(now, get(Tail(m.of.name)), active)
            motions[m] = frame_difference(now, last[:, :-1], row("tail") > 0, row("first") > 0, m.relative)
            out[Tail(m.of.name)] = last
        signals = {s.name: s for s in self.policy.signals}
        params = {p: get(Params())[i] for i, p in enumerate(self.spec.params)}
        clock = {c: row(c) for c in CLOCKS}
        tables = {t: row(f"table:{i}") for i, t in enumerate(self.spec.tables)}
        late = {n: get(Late(n)) for n in self.late}
        leaves = Leaves(params, clock, tables, changes, motions, late, signals, account)
        mask, held, acted = self._mask(leaves, row("phase"), get)
        compute = active & (forced | (mask & ~reused))
        moving = active & ~forced & ~reused
        grown = torch.where(moving, held, account)
        out[Mask()] = compute
        out[Measured()] = torch.stack([self._measured(r, leaves, grown, acted) for r in self.spec.measured], 1)
        out[Count("account")] = torch.where(compute, torch.zeros_like(grown), grown)
        for count in self.spec.counts[1:]:
            kept = get(count)
            more = torch.where(active & ~compute, kept + 1.0, kept)
            out[count] = more if count.of == "total" else torch.where(compute, kept * 0.0, more)
        for slot in self.spec.outputs:
            if isinstance(slot, Before):
                refresh = active if slot.since == "step" else compute.any(-1, True).any(-2, True)
                out[slot] = torch.where(refresh.unsqueeze(-1), cells[slot.source].float(), get(slot))
        return {identifier(slot): value for slot, value in out.items()}

    def _mask(self, leaves: Leaves, phase: torch.Tensor, get: Get) -> tuple[torch.Tensor, torch.Tensor, Acted]:
        """(tokens that fire, accounts as grown, guards that acted) in this step, by the rule of each chunk's phase."""
        fired = held = None
        acted: dict[str, torch.Tensor] = {}
        for index, rule in self.rules.items():
            f, a, by = fire(rule, leaves, get)
            here = phase == float(index)
            fired = f if fired is None else torch.where(here, f, fired)
            held = a if held is None else torch.where(here, a, held)
            for name, changed in by.items():
                mine = (changed & here).any(-1).any(-1)
                acted[name] = acted[name] | mine if name in acted else mine
        assert fired is not None
        assert held is not None
        return fired, held, acted

    def _measured(self, row: Row, leaves: Leaves, grown: torch.Tensor, acted: Acted) -> torch.Tensor:
        """One row of what is measured, [B, G] float32."""
        match row.what:
            case "highest":
                return grown.amax((2, 3))
            case "lowest":
                return grown.amin((2, 3))
            case "signal":
                return (torch.zeros_like(grown) + evaluate(ir.SignalRef(row.name), leaves)).mean((2, 3))
            case "guard":
                return acted[row.name].float()
            case _:
                assert_never(row.what)


def guards_of(rule: ir.Reuse) -> dict[Guard, ir.Expr | None]:
    """The guards of a rule by name, in the order in which they apply."""
    return {
        "vote": rule.vote, "hold": rule.hold_below, "compute all": rule.all_above,
        "at most in a row": rule.max_consecutive, "at most in total": rule.max_total,
        "at most of tokens": rule.max_reused,
    }  # fmt: skip


def fire(rule: ir.Reuse | ir.Top, leaves: Leaves, get: Get) -> tuple[torch.Tensor, torch.Tensor, Acted]:
    """Which cells a rule computes [B, G, F, P], the accounts after this step's addition, and which guards acted.

    A cell whose signals are not finite is computed, whatever the condition and the guards say.
    """
    account = leaves.account
    assert account is not None
    if isinstance(rule, ir.Top):
        score = torch.zeros_like(account) + evaluate(rule.by, leaves)
        return _ranked(score, evaluate(rule.share, leaves)) | ~torch.isfinite(score), account, {}
    if rule.granularity <= ir.Granularity.CHUNK:  # one account per chunk: that of the token that drifted most
        account = account.amax((2, 3), keepdim=True) + account * 0.0
        leaves = Leaves(**{f.name: getattr(leaves, f.name) for f in fields(leaves)} | {"account": account})
    grown = account + _added(rule.condition, leaves)
    fired = apply("not", [evaluate(rule.condition, leaves)]) | (account < float("-inf"))
    acted: dict[str, torch.Tensor] = {}
    for name, limit in guards_of(rule).items():
        if limit is not None:
            guarded = _guarded(name, fired, evaluate(limit, leaves), grown, get)
            acted[name], fired = guarded != fired, guarded
    return fired | _undefined(rule.condition, leaves, grown), grown, acted


def _guarded(
    name: Guard, fired: torch.Tensor, limit: torch.Tensor | float, grown: torch.Tensor, get: Get
) -> torch.Tensor:
    """What a guard makes of the cells that fire, [B, G, F, P]."""
    match name:
        case "vote":
            return (fired.float().mean(2, keepdim=True) > limit) | (fired & ~fired)
        case "hold":
            share = _share(fired)
            return fired & ~((share > 0.0) & (share < limit))
        case "compute all":  # of what is left: a chunk that was held computes nothing
            return fired | (_share(fired) > limit)
        case "at most in a row":
            return fired | (get(Count("streak")) >= limit)
        case "at most in total":
            return fired | (get(Count("total")) >= limit)
        case "at most of tokens":  # what is computed anyway counts first: the guard adds only what is missing
            return fired | _ranked(torch.where(fired, float("inf"), grown), 1.0 - limit)
        case _:
            assert_never(name)


def _undefined(condition: ir.Expr, leaves: Leaves, grown: torch.Tensor) -> torch.Tensor:
    """The cells whose decision would rest on what is no finite number."""
    undefined = ~torch.isfinite(grown)
    for e in deciding(condition, leaves.signals):
        if not isinstance(e, ir.Accumulate):
            undefined = undefined | ~torch.isfinite(torch.zeros_like(grown) + evaluate(e, leaves))
    return undefined


def _share(fired: torch.Tensor) -> torch.Tensor:
    """The computed share of each chunk's tokens, [B, G, 1, 1]."""
    return fired.float().mean((2, 3), keepdim=True)


def _added(condition: ir.Expr, leaves: Leaves) -> torch.Tensor | float:
    """What the rule adds to the account in this step: the argument of its `accumulate`, 0 without one."""
    for e in walk(condition, leaves.signals, late=False):
        if isinstance(e, ir.Accumulate):
            return evaluate(e.of, leaves)
    return 0.0


def _ranked(score: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The `share` of a chunk's tokens with the highest score (rounded up; ties by position)."""
    flat = score.flatten(2)
    order = flat.argsort(dim=-1, descending=True, stable=True)
    rank = torch.zeros_like(order).scatter(-1, order, (torch.ones_like(order).cumsum(-1) - 1))
    chosen = rank < (share * flat.size(2))
    return chosen.view(score.size(0), score.size(1), score.size(2), score.size(3))
