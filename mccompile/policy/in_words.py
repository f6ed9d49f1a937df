"""Parts of a policy in words: its layers, chunks and cache, its parameters, and when what is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mccompile import ir
from mccompile.language.spell import where
from mccompile.language.types import source_words
from mccompile.language.walk import rule_expressions
from mccompile.policy.budget import in_words
from mccompile.policy.evaluate import TIMESTEP_SOURCES, is_static

_KEPT = {
    "residual": "what the blocks add to their input",
    "output": "what the blocks return",
    "increment": "the step of the latent",
}
_OF_SUBLAYERS = {
    "residual": "what this part of each block adds to its input",
    "output": "what this part of each block gives, before its gate",
}
_OF_MODEL = {
    "residual": "the difference between the model's output and its latent input",
    "output": "what the model returns",
    "gap": "the difference between what the model returns and what it returned to the other branch at the same step",
}
_LIFE = {
    ("pending", "skip"): "chunks that have not begun are skipped",
    ("pending", "compute"): "chunks that have not begun are computed",
    ("finished", "keep"): "finished chunks keep the keys and values of their last step (approximate)",
    ("finished", "refresh"): "finished chunks get one last clean pass, then keep their keys and values (exact)",
    ("finished", "compute"): "finished chunks are computed",
}


def regions(policy: ir.PolicyIR) -> Iterator[str]:
    """A line for every region: its layers, and what is kept of them."""
    for region in policy.regions:
        match region.where:
            case ir.Blocks(first, last):
                place = where(first, last)
            case ir.Sublayers(ir.Blocks(first, last), part):
                place = where(first, last, part)
            case ir.Integration():
                place = "the whole model with the sampler's step"
            case ir.WholeModel():
                place = "model"
        place = f"each {place}" if region.each else place
        place = place if region.name is None else f"{region.name} = {place}"
        if region.nearest is not None:
            by = source_words(region.nearest)
            yield f"{place}: merge {region.keep}s: a token takes that of the computed one nearest by `{by}`"
            continue
        what = _OF_SUBLAYERS if isinstance(region.where, ir.Sublayers) else _KEPT
        what = _OF_MODEL if isinstance(region.where, ir.WholeModel) else what
        yield f"{place}: compute" if region.keep is None else f"{place}: keep {region.keep}, {what[region.keep]}"
        if region.forecast is not None and region.forecast.at is not None:
            depth = max(map(len, region.forecast.weights))
            steps = max(map(len, region.forecast.passed or ((),)))
            more = f", and those of the last {steps} step{'' if steps == 1 else 's'}" if steps else ""
            yield f"  reuse as {region.forecast.at.text}: the last {depth} results are kept{more}"
        if region.bands is not None and region.bands.at is not None:
            yield f"  reuse as {region.bands.at.text}: the low and the high frequencies of each frame, weighted"


def chunks(policy: ir.PolicyIR) -> Iterator[str]:
    """What happens before and after a chunk's own steps, and how guidance branches decide."""
    if policy.chunks.frames is not None:
        yield f"a chunk is {policy.chunks.frames} latent frames"
    yield _LIFE["pending", policy.chunks.pending]
    yield _LIFE["finished", policy.chunks.finished]
    leader = policy.branches.share_decision
    if leader is not None:
        batch = ", and run with it in one batch" if policy.branches.batch else ""
        yield f"the other guidance branches follow the decisions of {leader}{batch}"


def kept(cache: ir.Cache) -> Iterator[str]:
    """How things are kept, where that is not as the model has them."""
    if cache.budget is not None:
        yield f"keeps at most {cache.budget:,} bytes on the model's device: `--stage memory` tells how"
    elif not {cache.dtype, cache.residual, cache.device} <= {"auto", "model"}:
        yield f"keeps {in_words(cache)}"
    if cache.window is not None:
        yield f"{seen(cache.window)} (approximate)"
    if cache.keys is not None:
        yield f"{chosen(cache.keys)} (approximate)"


def chosen(keys: ir.KeyChoice) -> str:
    """Which keys attention reads of the chunks that a window leaves out."""
    by = "a sum of measures" if keys.by.at is None else f"`{keys.by.at.text}`"
    count = _count(keys.chunks)
    many = "one chunk holds" if count == "1" else f"{count} chunks hold"
    return f"of the chunks between it reads as many keys as {many}, the best by {by}, for each head and chunk"


def seen(window: ir.KeyWindow) -> str:
    """Which keys attention reads under a window."""
    count, first = (_count(n) for n in (window.chunks, window.sink))
    last = "a token's own chunk" if count == "1" else f"the last {count} chunks, a token's own among them"
    sink = "" if first == "0" else f", and those of the first {first}"
    return f"attention reads the keys of {last}{sink}"


def _count(n: ir.Expr) -> str:
    match n:
        case ir.Const(value):
            return f"{value:g}"
        case ir.ParamRef(name) | ir.SignalRef(name):
            return f"`{name}`"
        case _:
            return "some"


def parameter(param: ir.Param, value: float | None = None) -> tuple[str, str, str]:
    """The name, the value (None: the default) and the range of a parameter, as they are written."""
    scale, unit = (100.0, "%") if param.unit == "%" else (1.0, f" {param.unit}" if param.unit else "")
    default, low, high = (f"{scale * v:g}" for v in (param.default if value is None else value, param.low, param.high))
    return param.name, f"{default}{unit}", f"{low}{unit if unit == '%' else ''}..{high}{unit}"


def known(signal: ir.Signal, policy: ir.PolicyIR) -> str:
    """When the value of a signal is known."""
    if signal.late:
        return "known after the step, used by the next"
    static = is_static(signal.expr, policy, TIMESTEP_SOURCES)
    return "known before the first frame" if static else "measured at each step"


def rules_decided(phase: ir.Phase, policy: ir.PolicyIR) -> Iterator[tuple[str, str]]:
    """When the rule of a phase is decided, and each of its rules of regions."""
    yield phase.name, when_decided(phase.rule, policy)
    yield from ((f"  {one.region}", when_decided(one.rule, policy)) for one in phase.regions or ())
    for of in phase.branches or ():
        yield f"  {of.branch}", when_decided(of.rule, policy)
        yield from ((f"  {of.branch}.{one.region}", when_decided(one.rule, policy)) for one in of.regions or ())


def when_decided(rule: ir.Rule, policy: ir.PolicyIR) -> str:
    """Static where clock, parameters and the timestep's embedding decide; the planner's table then has it."""
    expressions = rule_expressions(rule)
    if not expressions:
        return "static: the clock decides"
    if isinstance(rule, ir.Reuse) and rule.max_reused is not None:
        return "dynamic: a part of the tokens is chosen in the graph, from data"
    if isinstance(rule, ir.Reuse) and all(is_static(e, policy, frozenset()) for e in expressions):
        return "static: the clock and the parameters decide"
    if isinstance(rule, ir.Every):
        return "static: the clock and the parameters decide"
    if isinstance(rule, ir.Reuse) and all(is_static(e, policy, TIMESTEP_SOURCES) for e in expressions):
        return "static, once the model's timestep embedding is known: folded into the plan (give --model)"
    in_a_model = replace(policy, regions=())
    if isinstance(rule, ir.Reuse) and all(is_static(e, in_a_model, TIMESTEP_SOURCES) for e in expressions):
        return "static, once the depth of each block is known: folded into the plan (give --model)"
    return "dynamic: decided by nodes in the graph, from data"
