"""What a word of a policy means: a parameter, a signal, a phase, layers, or a word of the language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mccompile import ir
from mccompile.diagnostics.source import Span
from mccompile.language.builtins import BRANCHES, CLOCKS, DEPTH, FUNCTIONS, SOURCES
from mccompile.language.intervals import CLOCKS as RANGES
from mccompile.language.intervals import Ranges, reach
from mccompile.language.parse import keywords
from mccompile.language.spell import signature, spell
from mccompile.language.types import word
from mccompile.language.walk import all_rules, walk
from mccompile.lsp.completion import SUBLAYERS
from mccompile.lsp.document import Document
from mccompile.policy.evaluate import TIMESTEP_SOURCES
from mccompile.policy.in_words import chosen, known, parameter, regions, rules_decided, seen

_SOURCES: Mapping[str, str] = {
    "time_embedding": "the embedding of the timestep",
    "modulation": "the modulation of the blocks, which the model derives from the time embedding",
    "latent": "the model's latent input",
    "embedded": "the latent after patch embedding, the input of the first block",
    "modulated_input": "the input of the first self-attention",
    "block_output": "the output of the cached layers, computed or reused; known after the step",
    "input": "what enters the layers that are decided about; behind `layers each`, each block's own input",
    "probe": "the residual of the layers before the cached ones, which are always computed",
    "probe_output": "the output of these layers",
    "output": "what the model returned at an earlier step: `kept(output)`, `before(output)`",
}
_CLOCKS: Mapping[str, str] = {
    "step": "the chunk's own step, from 0",
    "fraction": "step / steps",
    "timestep": "the timestep of the chunk's own step, from 1000 to 0",
    "sigma": "the noise level of the chunk's own step, from 1 to 0",
}
_DEPTH = "where the block that decides stands in the model, 0 for the first and 1 for the last; behind `layers each`"
_KEYWORDS: Mapping[str, str] = {
    "reuse": "`reuse G while CONDITION`: each cell is reused while the condition holds, and computed otherwise; "
    "of several in one phase the first one that holds says what stands in, `reuse G as VALUE while CONDITION`",
    "each": "`layers each blocks[1..]`: every block decides apart, by its own accounts and its own `input`",
    "as": "`reuse as VALUE` or `reuse G as VALUE while CONDITION`: what stands in for the kept result",
    "compute": "`compute`: everything is computed; also `compute every N steps`, `compute top 40% of tokens by SIGNAL`",
    "vote": "`vote 50% of frames`: a place is computed in all frames if more than this share of them selects it",
    "hold": "`hold when selected < 40%`: with less than this share, nothing is computed and the accounts stay",
    "keep": "`keep residual` or `keep output`: what is put in the place of blocks that are reused",
    "until": "`until N refreshes`: until N steps of the phase computed at least one token of the chunk",
    "extends": "`extends BASE`: everything of another policy, some of it declared again",
}

_OF_KEYS: Mapping[str, str] = {
    "window": "`cache { window: 5 chunks }`: attention reads the keys of the last 5 chunks, a token's own among them",
    "sink": "`cache { sink: 1 chunks }`: attention reads the keys of the first chunk too, though a window has left it",
    "keys": "`cache { keys: top 3 chunks by SIGNAL }`: of the chunks that a window has left as many keys are read "
    "as 3 chunks hold, those for which the signal is largest",
}


def hover(document: Document, at: Span) -> str:
    """Markdown about the word at a place; "" where there is nothing to say."""
    name = at.text
    policy = document.policy
    own = document.merged.functions.get(name) if document.merged is not None else None
    if own is not None:
        return f"```policy\nfunction {signature(own)}\n```\n\nstands for `{spell(own.expr)}`"
    if policy is not None:
        for param in policy.params:
            if param.name == name:
                return _param(param)
        for signal in policy.signals:
            if signal.name == name:
                return "\n\n".join(_signal(document, signal, policy))
        for phase in policy.phases:
            if phase.name == name:
                rows = rules_decided(phase, policy)
                return f"**phase** `{name}`\n\n" + "\n\n".join(f"{at.strip()}: {what}" for at, what in rows)
        if name in ("layers", "blocks", "integration", "residual", "output", "increment", "gap"):
            return "**layers**\n\n" + "\n\n".join(line.strip() for line in regions(policy))
        if name == "keys" and policy.cache.keys is not None:
            return f"{_OF_KEYS[name]}\n\nhere {chosen(policy.cache.keys)}"
        if name in _OF_KEYS and policy.cache.window is not None:
            return f"{_OF_KEYS[name]}\n\nhere {seen(policy.cache.window)}"
        written = document.merged.signals.get(name) if document.merged is not None else None
        if written is not None and policy.cache.keys is not None:  # the others are signals of the policy
            return f"**signal** `{name}` = `{spell(written.expr)}`\n\none number per key; {chosen(policy.cache.keys)}"
    return _of_language(name)


def _param(param: ir.Param) -> str:
    name, default, within = parameter(param)
    kind = "a whole number" if param.whole else "a share" if param.unit == "%" else "a number"
    return (
        f"**param** `{name}`: {kind}, {default} in {within}\n\n"
        f"`--set {name}=VALUE`; it is known before the run, and a new value compiles nothing"
    )


def _signal(document: Document, signal: ir.Signal, policy: ir.PolicyIR) -> Iterator[str]:
    written = document.merged.signals.get(signal.name) if document.merged is not None else None
    yield f"**signal** `{signal.name}`" + (f" = `{spell(written.expr)}`" if written is not None else "")
    signals = {s.name: s for s in policy.signals}
    within = reach(signal.expr, Ranges({p.name: p for p in policy.params}, signals))
    yield f"one number per {word(signal.granularity)}, from {within.low:g} to {within.high:g}; {known(signal, policy)}"
    read = dict.fromkeys(e.name for e in walk(signal.expr, signals) if isinstance(e, ir.SourceRef))
    if read:
        yield f"reads {', '.join(f'`{name}`' for name in read)}"
    into = dict.fromkeys(
        account.into
        for rule in all_rules(policy)
        for account in _accounts(rule, signals)
        if any(isinstance(e, ir.SignalRef) and e.name == signal.name for e in walk(account.of, {}))
    )
    if into:
        yield f"added to {', '.join(f'`{name}`' for name in into)} of each cell until the cell is computed"


def _accounts(rule: ir.Rule, signals: Mapping[str, ir.Signal]) -> Iterator[ir.Accumulate]:
    if isinstance(rule, ir.Reuse):
        yield from (e for e in walk(rule.condition, signals) if isinstance(e, ir.Accumulate))


def _of_language(name: str) -> str:
    if name in FUNCTIONS:
        return f"```policy\n{FUNCTIONS[name].signature()}\n```\n\n{FUNCTIONS[name].duty}"
    if name in SOURCES:
        tokens = "one value per token" if SOURCES[name].per_token else "one value per step"
        static = "known before the run" if name in TIMESTEP_SOURCES else "measured at each step"
        return f"**source** `{name}`: {_SOURCES[name]}\n\na tensor, {tokens}; {static}"
    if name in CLOCKS:
        within = RANGES[CLOCKS[name]]
        return f"**clock** `{name}`: {_CLOCKS[name]}\n\na number per chunk, {within.low:g} to {within.high:g}; static"
    if name == DEPTH:
        return f"`{name}`: {_DEPTH}\n\na number per block, 0 to 1; known once the model is"
    if name in SUBLAYERS:
        return f"**part of blocks** `{name}`: {SUBLAYERS[name]}"
    if name in BRANCHES:
        return f"**guidance branch** `{name}`: before a rule, `{name}: RULE`, the rule holds in its calls alone"
    if name in _KEYWORDS and name in keywords():
        return _KEYWORDS[name]
    return _OF_KEYS.get(name, "")
