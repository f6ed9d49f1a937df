"""Lowers late signals to a graph: what a region's output says about the next step, such as motion weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from mccompile import ir
from mccompile.language.walk import all_rules, walk, walk_rule
from mccompile.lowering.expressions import Leaves, evaluate, frame_difference, last_frames
from mccompile.lowering.sources import Located, to_cells
from mccompile.lowering.trace_fx import build_graph


@dataclass(frozen=True, slots=True)
class ObserveSpec:
    """A graph that runs after the region, if the next step of some chunk wants it.

    inputs: "host" [B, 3, G] (rows want, first, tail), "params", "output" (the region's, [B, L, C]), "tail"
    [B, G + 1, P, C], then one [B, G, F, P] per late signal. Outputs: "tail" and the signals.
    """

    module: fx.GraphModule
    signals: tuple[str, ...]
    params: tuple[str, ...]


HOST = ("want", "first", "tail")


def late_signals(policy: ir.PolicyIR, rule: ir.Rule) -> frozenset[str]:
    """Returns the names of the late signals that a rule reads."""
    signals = {s.name: s for s in policy.signals}
    found = walk_rule(rule, signals)
    return frozenset(e.name for e in found if isinstance(e, ir.SignalRef) and signals[e.name].late)


def late_wanted(policy: ir.PolicyIR) -> tuple[bool, ...]:
    """Says of each phase whether its steps need late signals: its rule reads some, or a running mean of any rule does.

    Each step adds to a running mean, whatever its own rule reads.
    """
    signals = {s.name: s for s in policy.signals}
    read = (e for rule in all_rules(policy) for e in walk_rule(rule, signals))
    means = (e for e in read if isinstance(e, ir.Average | ir.Smooth))
    below = (e for mean in means for e in walk(mean.of, signals))
    always = any(isinstance(e, ir.SignalRef) and signals[e.name].late for e in below)
    return tuple(always or bool(late_signals(policy, phase.rule)) for phase in policy.phases)


def build_observe(policy: ir.PolicyIR, output: Located) -> ObserveSpec | None:
    """Builds the graph of all late signals that some rule reads. Returns None if there is none."""
    wanted = sorted(frozenset().union(*(late_signals(policy, rule) for rule in all_rules(policy))))
    if not wanted:
        return None
    signals = {s.name: s for s in policy.signals}
    params = tuple(p.name for p in policy.params)

    def run(given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = {n: given[f"late__{n}"] for n in wanted}
        host = given["host"]
        want, first, has_tail = (host[:, i].unsqueeze(-1).unsqueeze(-1) > 0 for i in range(len(HOST)))
        h = to_cells(given["output"], output, old[wanted[0]])
        last = last_frames(h, given["tail"], want)
        values = {p: given["params"][i] for i, p in enumerate(params)}
        diffs = [
            e for n in wanted for e in walk(signals[n].expr, signals) if isinstance(e, ir.FrameDiff)
        ]
        motions = {d: frame_difference(h, last[:, :-1], has_tail, first, d.relative) for d in diffs}
        leaves = Leaves(values, {}, {}, {}, motions, {}, signals, {})
        out = {"tail": last}
        for name in wanted:
            new = evaluate(signals[name].expr, leaves) + old[name] * 0.0
            out[f"late__{name}"] = torch.where(want, new, old[name])
        return out

    names = ("host", "params", "output", "tail", *(f"late__{n}" for n in wanted))
    return ObserveSpec(build_graph(names, run, ("tail", *names[4:])), tuple(wanted), params)
