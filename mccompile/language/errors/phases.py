"""MC023x: a phase or a rule cannot do what it says."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Edit, Help, Label, words
from mccompile.diagnostics.source import Span

_TO_THE_END = "holds to the end of the run"


@dataclass(frozen=True, slots=True)
class NoPhases(Diagnostic):
    code = "MC0230"
    title = "the policy `{name}` has no phase"
    label = "nothing says what its steps do"
    name: str
    library: bool  # it declares functions alone

    def helps(self) -> tuple[Help, ...]:
        if self.library:
            return (Help("a file of functions is no policy by itself: write `use` and its name in one"),)
        return (Help("add at least `phase all { compute }`"),)


@dataclass(frozen=True, slots=True)
class UnreachablePhase(Diagnostic):
    code = "MC0231"
    title = "the phase `{name}` is never reached"
    label = "no step is left for it"
    name: str
    endless: str
    endless_span: Span
    how: str = _TO_THE_END

    def secondary(self) -> tuple[Label, ...]:
        return (Label(self.endless_span, f"`{self.endless}` {self.how}"),)

    def helps(self) -> tuple[Help, ...]:
        if self.how != _TO_THE_END:
            return (Help(f"change when `{self.endless}` holds, or take `{self.name}` out"),)
        return (Help(f"end `{self.endless}` with `for ... steps` or `until ... refreshes`"),)


@dataclass(frozen=True, slots=True)
class EmptyPhase(Diagnostic):
    code = "MC0232"
    title = "the phase `{name}` lasts no step"
    label = "{why}"
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class UncoveredRun(Diagnostic):
    code = "MC0233"
    title = "no phase holds to the end of the run"
    label = "the last phase, `{name}`, ends"
    name: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("let the last phase hold to the end, or add `phase rest { compute }`"),)


@dataclass(frozen=True, slots=True)
class NotAClockRange(Diagnostic):
    code = "MC0234"
    title = "the `while` of a phase is not a range of the clock"
    label = "{why}"
    note = "a phase holds while `low <= clock < high`, `clock < high` or `clock >= low`"
    why: str
    clocks: tuple[str, ...]

    def helps(self) -> tuple[Help, ...]:
        return (Help(f"the clock is {words(self.clocks)}"),)


@dataclass(frozen=True, slots=True)
class BadStepRange(Diagnostic):
    code = "MC0235"
    title = "invalid steps in the mask"
    label = "{why}"
    why: str


@dataclass(frozen=True, slots=True)
class OpenMask(Diagnostic):
    code = "MC0236"
    title = "the step mask has no length"
    label = "to which step?"

    def helps(self) -> tuple[Help, ...]:
        assert self.span is not None
        return (Help("say for how many steps the mask is made", Edit(self.span.after(), " of 50")),)


@dataclass(frozen=True, slots=True)
class BeginsWithReuse(Diagnostic):
    code = "MC0237"
    title = "the first step of the run reuses what was never computed"
    label = "step 0 is not computed"

    def helps(self) -> tuple[Help, ...]:
        return (Help("compute step 0, or put a phase before this one"),)


@dataclass(frozen=True, slots=True)
class ConstantCondition(Diagnostic):
    """A condition, or a part of one, that is the same whatever is measured."""

    code = "MC0238"
    title = "the condition is the same at every step"
    label = "{which}"
    note = "{then}"
    which: str
    then: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("compare a signal, `accumulate(...)` or a clock value with a number that it reaches"),)


@dataclass(frozen=True, slots=True)
class MeaninglessGuard(Diagnostic):
    code = "MC0239"
    title = "`{guard}` has no meaning in a `{rule}` rule"
    label = "{why}"
    guard: str
    rule: str
    decides: str
    why: str
    rule_span: Span

    def secondary(self) -> tuple[Label, ...]:
        return (Label(self.rule_span, self.decides),)


@dataclass(frozen=True, slots=True)
class OddAlternative(Diagnostic):
    """One of several `reuse ... while` of a phase that does not fit to the others."""

    code = "MC0271"
    title = "the alternatives of the rule do not fit together"
    label = "{why}"
    why: str
    remedy: str

    def helps(self) -> tuple[Help, ...]:
        return (Help(self.remedy),)


@dataclass(frozen=True, slots=True)
class NoEffect(Diagnostic):
    """A guard, or a rule, that can be taken out without a difference, or that leaves nothing to decide."""

    code = "MC0245"
    title = "`{what}` has no effect"
    label = "{why}"
    what: str
    why: str
