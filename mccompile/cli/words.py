"""A policy in words: what it does, its parameters, its signals, and what is settled before the first frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mccompile import ir
from mccompile.cli.terminal import aligned
from mccompile.language import ast
from mccompile.language.checked import CheckedParam, CheckedPolicy
from mccompile.language.spell import guard, layer_rule, rule, spell, when, where
from mccompile.policy.budget import in_words
from mccompile.policy.evaluate import TIMESTEP_SOURCES, is_static, rule_expressions

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


def describe(checked: CheckedPolicy, policy: ir.PolicyIR, comments: Sequence[str]) -> Iterator[str]:
    """Lines: the name, then the parts in the order in which one asks for them."""
    models = f", calibrated for {', '.join(checked.models)}" if checked.models else ""
    yield f"{checked.name}{models}"
    yield from (f"  {c.removeprefix('#').strip()}" for c in comments)
    yield "\nWhat it does"
    yield from _indented([(p.name.text, _when(p), _does(p.rule)) for p in checked.phases])
    for line in (*_layers(checked), *_chunks(checked), *_kept(policy.cache)):
        yield f"  {line}"
    if checked.params:
        yield "\nParameters (--set NAME=VALUE)"
        yield from _indented([_parameter(p) for p in checked.params])
    if checked.signals:
        yield "\nSignals"
        rows = zip(checked.signals, policy.signals, strict=True)
        yield from _indented([(s.name, spell(s.expr), f"per {s.granularity.word}", _known(i, policy)) for s, i in rows])
    yield "\nPhases"
    yield from _indented([(p.name, _settled(p, policy)) for p in policy.phases])


def _indented(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (f"  {line}" for line in aligned(rows))


def _when(phase: ast.PhaseDecl) -> str:
    return "to the end" if phase.when is None else when(phase.when)


def _does(what: ast.Rule) -> str:
    if not isinstance(what, ast.Reuse):
        return "computes everything" if isinstance(what, ast.Compute) else rule(what)
    guards = "".join(f"; {guard(g)}" for g in what.guards)
    return f"reuses each {what.granularity.text} while {spell(what.condition)}, else computes it{guards}"


def _layers(checked: CheckedPolicy) -> Iterator[str]:
    for item in checked.layers:
        place = "the whole model with the sampler's step" if item.where is None else f"blocks[{where(item.where)}]"
        kept = _KEPT.get(item.keep.text, layer_rule(item.keep)) if item.keep is not None else ""
        yield f"{place}: {layer_rule(item.keep)}" + (f", {kept}" if kept else "")


def _chunks(checked: CheckedPolicy) -> Iterator[str]:
    if checked.chunks.frames is not None:
        yield f"a chunk is {checked.chunks.frames} latent frames"
    yield _LIFE["pending", checked.chunks.pending]
    yield _LIFE["finished", checked.chunks.finished]
    leader = checked.branches.share_decision
    if leader is not None:
        batch = ", and run with it in one batch" if checked.branches.batch else ""
        yield f"the other guidance branches follow the decisions of {leader}{batch}"


def _kept(cache: ir.Cache) -> Iterator[str]:
    if cache.budget is not None:
        yield f"keeps at most {cache.budget:,} bytes on the model's device: `--stage memory` tells how"
    elif not {cache.dtype, cache.residual, cache.device} <= {"auto", "model"}:
        yield f"keeps {in_words(cache)}"


def _parameter(param: CheckedParam) -> tuple[str, str, str]:
    scale, unit = (100.0, "%") if param.unit == "%" else (1.0, f" {param.unit}" if param.unit else "")
    default, low, high = (f"{scale * v:g}" for v in (param.default, param.low, param.high))
    return param.name, f"{default}{unit}", f"{low}..{high}{unit}"


def _known(signal: ir.Signal, policy: ir.PolicyIR) -> str:
    if signal.late:
        return "known after the step, used by the next"
    static = is_static(signal.expr, policy, TIMESTEP_SOURCES)
    return "known before the first frame" if static else "measured at each step"


def _settled(phase: ir.Phase, policy: ir.PolicyIR) -> str:
    """Static where clock, parameters and the timestep's embedding decide; the planner's table then has it."""
    expressions = rule_expressions(phase.rule)
    if not expressions:
        return "static: the clock decides"
    if isinstance(phase.rule, ir.Reuse) and all(is_static(e, policy, TIMESTEP_SOURCES) for e in expressions):
        return "static, once the model's timestep embedding is known: folded into the plan (give --model)"
    return "dynamic: decided by nodes in the graph, from data"
