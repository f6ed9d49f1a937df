"""Values for a policy that was not loaded yet: words pick alternatives of its choices, numbers are its parameters'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.ir import PolicyIR
from mccompile.language.load import load_choices, load_policy
from mccompile.policy.errors import UnknownPick


@dataclass(frozen=True, slots=True)
class Chosen:
    """A policy with its choices settled. picks: the alternatives that were asked for. numbers: parameters' values."""

    policy: PolicyIR
    picks: Mapping[str, str]
    numbers: Mapping[str, float]


def load_chosen(policy: str | Path | Source, values: Mapping[str, float | str]) -> Chosen:
    """The policy (as `load_policy` takes it) under the picked alternatives.

    Raises PolicyError: what `load_policy` raises, and MC0310 for words that are no alternative of a choice.
    """
    found = load_policy(policy)
    choices = load_choices(policy)
    picks = {name: word for name, word in values.items() if isinstance(word, str)}
    numbers = {name: number for name, number in values.items() if not isinstance(number, str)}
    problems = [
        UnknownPick(None, found.name, name, value if isinstance(value, str) else f"{value:g}", choices.get(name, ()))
        for name, value in values.items()
        if (isinstance(value, str) or name in choices) and value not in choices.get(name, ())
    ]
    if problems:
        raise PolicyError(problems)
    return Chosen(load_policy(policy, picks) if picks else found, picks, numbers)
