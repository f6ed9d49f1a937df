"""Describes a policy in words: what it does, its parameters and signals, and what is decided before the first frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mccompile import ir
from mccompile.cli.terminal import aligned
from mccompile.language import ast
from mccompile.language.extend import Merged
from mccompile.language.spell import guard, rule, spell, when, where
from mccompile.language.types import word
from mccompile.language.walk import rule_expressions
from mccompile.policy.budget import in_words
from mccompile.policy.evaluate import TIMESTEP_SOURCES, is_static

_KEPT = {
    "residual": "what the blocks add to their input",
    "output": "what the blocks return",
    "increment": "the step of the latent",
}
_LIFE = {
    ("pending", "skip"): "chunks that have not begun are skipped",
    ("pending", "compute"): "chunks that have not begun are computed",
    ("finished", "keep"): "finished chunks keep the keys and values of their last step (approximate)",
    ("finished", "refresh"): "finished chunks get one last clean pass, then keep their keys and values (exact)",
    ("finished", "compute"): "finished chunks are computed",
}


def describe(
    written: Merged, policy: ir.PolicyIR, comments: Sequence[str], choices: Mapping[str, tuple[str, Sequence[str]]]
) -> Iterator[str]:
    """Lines: the name, then the parts in the order in which one asks for them.

    written: what `policy` was made of. choices: of each the alternative that holds, and all of them.
    """
    models = f", calibrated for {', '.join(policy.models)}" if policy.models else ""
    yield f"{policy.name}{models}"
    yield from (f"  {c.removeprefix('#').strip()}" for c in comments)
    yield "\nWhat it does"
    yield from _indented([row for p in written.phases.values() for row in _phase(p)])
    for line in (*_regions(policy), *_chunks(policy), *_kept(policy.cache)):
        yield f"  {line}"
    if choices:
        yield "\nChoices (--set NAME=ALTERNATIVE)"
        yield from _indented([(name, picked, f"of {', '.join(known)}") for name, (picked, known) in choices.items()])
    if policy.params:
        yield "\nParameters (--set NAME=VALUE)"
        yield from _indented([_parameter(p) for p in policy.params])
    if policy.signals:
        yield "\nSignals"
        rows = [(s, spell(written.signals[s.name].expr)) for s in policy.signals]
        yield from _indented([(s.name, text, f"per {word(s.granularity)}", _known(s, policy)) for s, text in rows])
    yield "\nPhases"
    yield from _indented([row for p in policy.phases for row in _settled_rules(p, policy)])


def _indented(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (f"  {line}" for line in aligned(rows))


def _when(phase: ast.PhaseDecl) -> str:
    return "to the end" if phase.when is None else when(phase.when)


def _phase(phase: ast.PhaseDecl) -> Iterator[tuple[str, str, str]]:
    """A row for the phase, and one for each of its rules of regions."""
    yield phase.name.text, _when(phase), "computes all other layers" if phase.regions else _does(phase.rule)
    yield from ((f"  {one.region.text}", "", _does(one.rule)) for one in phase.regions)


def _does(what: ast.WrittenRule) -> str:
    guards = "".join(f"; {guard(g)}" for g in what.guards) if isinstance(what, ast.ReuseRule | ast.ComputeTop) else ""
    if not isinstance(what, ast.ReuseRule):
        return "computes everything" if isinstance(what, ast.ComputeRule) else rule(what) + guards
    return f"reuses each {what.granularity.text} while {spell(what.condition)}, else computes it{guards}"


def _regions(policy: ir.PolicyIR) -> Iterator[str]:
    for region in policy.regions:
        match region.where:
            case ir.Blocks(first, last):
                place = f"blocks[{where(first, last)}]"
            case ir.Integration():
                place = "the whole model with the sampler's step"
        place = place if region.name is None else f"{region.name} = {place}"
        yield f"{place}: compute" if region.keep is None else f"{place}: keep {region.keep}, {_KEPT[region.keep]}"
        if region.forecast is not None and region.forecast.at is not None:
            depth = max(map(len, region.forecast.weights))
            yield f"  reuse as {region.forecast.at.text}: the last {depth} results are kept"


def _chunks(policy: ir.PolicyIR) -> Iterator[str]:
    if policy.chunks.frames is not None:
        yield f"a chunk is {policy.chunks.frames} latent frames"
    yield _LIFE["pending", policy.chunks.pending]
    yield _LIFE["finished", policy.chunks.finished]
    leader = policy.branches.share_decision
    if leader is not None:
        batch = ", and run with it in one batch" if policy.branches.batch else ""
        yield f"the other guidance branches follow the decisions of {leader}{batch}"


def _kept(cache: ir.Cache) -> Iterator[str]:
    if cache.budget is not None:
        yield f"keeps at most {cache.budget:,} bytes on the model's device: `--stage memory` tells how"
    elif not {cache.dtype, cache.residual, cache.device} <= {"auto", "model"}:
        yield f"keeps {in_words(cache)}"


def _parameter(param: ir.Param) -> tuple[str, str, str]:
    scale, unit = (100.0, "%") if param.unit == "%" else (1.0, f" {param.unit}" if param.unit else "")
    default, low, high = (f"{scale * v:g}" for v in (param.default, param.low, param.high))
    return param.name, f"{default}{unit}", f"{low}..{high}{unit}"


def _known(signal: ir.Signal, policy: ir.PolicyIR) -> str:
    if signal.late:
        return "known after the step, used by the next"
    static = is_static(signal.expr, policy, TIMESTEP_SOURCES)
    return "known before the first frame" if static else "measured at each step"


def _settled_rules(phase: ir.Phase, policy: ir.PolicyIR) -> Iterator[tuple[str, str]]:
    yield phase.name, _settled(phase.rule, policy)
    yield from ((f"  {one.region}", _settled(one.rule, policy)) for one in phase.regions or ())


def _settled(rule: ir.Rule, policy: ir.PolicyIR) -> str:
    """Static where clock, parameters and the timestep's embedding decide; the planner's table then has it."""
    expressions = rule_expressions(rule)
    if not expressions:
        return "static: the clock decides"
    if isinstance(rule, ir.Reuse) and all(is_static(e, policy, frozenset()) for e in expressions):
        return "static: the clock and the parameters decide"
    if isinstance(rule, ir.Every):
        return "static: the clock and the parameters decide"
    if isinstance(rule, ir.Reuse) and all(is_static(e, policy, TIMESTEP_SOURCES) for e in expressions):
        return "static, once the model's timestep embedding is known: folded into the plan (give --model)"
    return "dynamic: decided by nodes in the graph, from data"
