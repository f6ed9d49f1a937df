"""The laws of a policy on a model, tried on short runs before a long job: which hold, by how much, within what bound.

compute   the policy `compute` gives what the model gives
exact     the policy `exact` does: pending chunks skipped, finished ones kept, prelude values computed once
rows      the partial form of every block gives the rows of its full form
kept      on other streams it gives those of a full form that reads the kept rows of all other tokens
tokens    a run whose tokens are all selected one by one gives what the model gives
reuse     a reused step is its input plus the kept residual
finite    the policy's own run is made of numbers
repeat    a second run is the first one
size      at another size `compute` gives what the model gives, and the policy runs
folding   decisions that are folded into the plan are those that the decision graph makes
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mccompile.capture.verify import TOLERANCE
from mccompile.generate.part_laws import difference, kept_apart, reuse_apart, rows_apart
from mccompile.generate.subjects import LawSubject, without_budget
from mccompile.ir import PolicyIR
from mccompile.language.load import load_policy
from mccompile.language.source import Source
from mccompile.lowering.locate import latent_inputs
from mccompile.policy.facts import keeps_increment, model_region
from mccompile.runtime.compiled import LOG, CompiledModel
from mccompile.runtime.trace import share_computed

LawOutcome = Literal["holds", "fails", "unclear", "-"]
LARGE = 0.25  # a bound above this share of the largest entry tells a wrong result from none
_SIGMAS = 4  # how many times the expected size of a sum of roundings is allowed
_MASK = """policy mask {
  phase mask { compute 1 reuse 1 }
  layers blocks[*] { keep residual }
}
"""
_ALL = """policy all {
  param part = 100% in 0%..100%
  signal motion = frame_diff(embedded)
  phase first for 1 step { compute }
  phase rest { compute top part of tokens by motion }
  layers blocks[*] { keep residual }
}
"""


@dataclass(frozen=True, slots=True)
class Law:
    """What a run says about a law. said: how far two results are apart, or why it was not tried ("-")."""

    name: str
    outcome: LawOutcome
    said: str


@dataclass(frozen=True, slots=True)
class Bound:
    """How far two right results of a run may be apart, relative to the largest entry; response: to one rounding."""

    value: float
    response: float
    blocks: int
    dtype: torch.dtype

    def in_words(self) -> str:
        """Why the bound is what it is."""
        return (
            f"bound of whole runs: {self.value:.1e} of the largest entry. One rounding of the latents in each call "
            f"moves the result by {self.response:.1e} in {_named(self.dtype)}; a sum in another order rounds as much "
            f"in each of {self.blocks} blocks, which comes to {_SIGMAS} * sqrt({self.blocks}) times this at most.\n"
            f"bound of parts: {TOLERANCE[self.dtype]:.0e}, for the same products summed in another order."
        )


@dataclass(frozen=True, slots=True)
class LawVerdict:
    """All laws of a policy on a model, and the bound of its runs."""

    laws: tuple[Law, ...]
    bound: Bound

    @property
    def holds(self) -> bool:
        """Whether every law that was tried holds."""
        return all(law.outcome in ("holds", "-") for law in self.laws)


def validate(subject: LawSubject, policy: PolicyIR, numbers: Mapping[str, float]) -> LawVerdict:
    """Tries every law. Raises what compiling the policy raises, and what the model raises at a small size."""
    with _silent():
        trial = _Trial(subject, policy, numbers)
        return LawVerdict(tuple(trial.laws()), trial.bound)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the warnings of runs: short ones reach no late phase, and several of them are of our own policies."""
    before = LOG.level
    LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOG.setLevel(before)


class _Trial:
    """The runs of a policy on a subject."""

    def __init__(self, subject: LawSubject, policy: PolicyIR, numbers: Mapping[str, float]) -> None:
        self.subject, self.policy, self.numbers = subject, policy, numbers
        subject.restore()
        self.vanilla = [subject.run(0), subject.run(1)]
        subject.nudge()
        response = difference(subject.run(0), self.vanilla[0])
        subject.restore()
        blocks = len(subject.prepared.model.blocks)
        value = max(_SIGMAS * math.sqrt(blocks) * response, 8 * torch.finfo(subject.dtype).eps)
        self.bound = Bound(value, response, blocks, subject.dtype)

    def laws(self) -> Iterator[Law]:
        """In the order of the module's docstring."""
        captured = self.subject.prepared.model
        self.subject.compile("compute")
        at_sizes = [difference(self.subject.run(size), self.vanilla[size]) for size in (0, 1)]
        yield self._run("compute", at_sizes[0])
        self.subject.compile("exact")
        yield self._run("exact", difference(self.subject.run(0), self.vanilla[0]))
        if captured.gather is None or any(k.partial is None for k in captured.kinds):
            why = next((r.reason for r in captured.refusals), captured.opaque)
            yield Law("rows", "-", f"the model has no row form: {why}")
            yield Law("kept", "-", "the model has no row form")
        else:
            yield self._part("rows", *rows_apart(captured, self.subject.prepared.calls[0]))
            yield self._part("kept", *kept_apart(captured, self.subject.prepared.calls[0]))
        yield self._tokens()
        yield self._reuse()
        yield from self._own(at_sizes[1])

    def _own(self, other_size: float) -> Iterator[Law]:
        """The laws of the policy's own runs."""
        compiled = self.subject.compile(self.policy, self.numbers)
        first, decided = self.subject.run(0), _decisions(compiled)
        finite = bool(torch.isfinite(first).all())
        yield Law("finite", "holds" if finite else "fails", _shares(compiled))
        compiled.events.clear()
        again, same = self.subject.run(0), _decisions(compiled) == decided
        yield self._decided("repeat", difference(again, first), same)
        wrong = "" if bool(torch.isfinite(self.subject.run(1)).all()) else "the policy's run is not made of numbers"
        yield Law("size", "fails", wrong) if wrong else self._run("size", other_size)
        compiled = self.subject.compile(self.policy, self.numbers, fold=False)
        unfolded = self.subject.run(0)
        yield self._decided("folding", difference(unfolded, first), _decisions(compiled) == decided)
        self.subject.restore()

    def _tokens(self) -> Law:
        if keeps_increment(self.policy):
            return Law("tokens", "-", "the policy keeps increments of the latent, and no results of blocks")
        compiled = self.subject.compile(self._like(_ALL))
        if not compiled.runner.engine.uses_rows:
            why = next((r.reason for r in compiled.refusals), "the policy selects no tokens")
            return Law("tokens", "-", why)
        return self._run("tokens", difference(self.subject.run(0), self.vanilla[0]))

    def _reuse(self) -> Law:
        if keeps_increment(self.policy):
            return Law("reuse", "-", "the policy keeps increments of the latent, and no residual")
        if model_region(self.policy) is not None:
            return Law("reuse", "-", "the policy keeps the output of the model, and no results of blocks")
        compiled = self.subject.compile(self._like(_MASK))
        self.subject.restore()
        latents = latent_inputs(compiled.captured)
        return self._part("reuse", reuse_apart(compiled.runner, self.subject.prepared.calls[0], latents))

    def _like(self, text: str) -> PolicyIR:
        """The rules of a text on the regions of the policy, with results kept as they are computed."""
        rules = load_policy(Source("validate.policy", text))
        return without_budget(replace(rules, regions=self.policy.regions, chunks=self.policy.chunks))

    def _run(self, name: str, off: float) -> Law:
        """A law about whole runs."""
        if off == 0:
            return Law(name, "holds", "equal bits")
        said = f"{off:.1e} apart, bound {self.bound.value:.1e}"
        if off <= self.bound.value and self.bound.value > LARGE:
            return Law(name, "unclear", f"{said}, too wide to tell; try --dtype float32, or fewer --steps")
        return Law(name, "holds" if off <= self.bound.value else "fails", said)

    def _part(self, name: str, off: float, place: str = "") -> Law:
        """A law about the parts of one step."""
        if off == 0:
            return Law(name, "holds", "equal bits")
        bound = TOLERANCE[self.subject.dtype]
        said = f"{off:.1e} apart, bound {bound:.0e}" + (f" ({place})" if place else "")
        return Law(name, "holds" if off <= bound else "fails", said)

    def _decided(self, name: str, off: float, same: bool) -> Law:
        """A law about two runs of the policy."""
        return self._run(name, off) if same else Law(name, "fails", "the runs decide differently")


def _decisions(compiled: CompiledModel) -> list[tuple[object, ...]]:
    """What was decided in each call, whatever its request was called."""
    return [(e.row, e.branch, e.sample, e.chunk, e.region, e.action, e.computed) for e in compiled.events]


def _shares(compiled: CompiledModel) -> str:
    events = compiled.events
    return f"{share_computed(events):.0%} of the tokens computed in {len({e.row for e in events})} steps"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
