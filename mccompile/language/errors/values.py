"""MC021x and MC022x: expressions whose type, granularity, unit or value does not fit, and parameters."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Edit, Help, Label, nearest, words
from mccompile.diagnostics.source import Span

ASK_HOW_FAR = (
    "a tensor is not a number: measure how far it moved with `rel_l1(...)`, or its motion with `frame_diff(...)`"
)


@dataclass(frozen=True, slots=True)
class WrongType(Diagnostic):
    code = "MC0210"
    title = "expected {expected}, found {found}"
    label = "{found}"
    expected: str
    found: str
    advice: str

    def helps(self) -> tuple[Help, ...]:
        return (Help(self.advice),) if self.advice else ()


@dataclass(frozen=True, slots=True)
class TooFine(Diagnostic):
    """A condition that varies within the cell that the rule decides about."""

    code = "MC0211"
    title = "a `reuse {rule}` rule cannot decide by a value per {found}"
    label = "one value per {found}"
    note = "the condition of a rule must not be finer than the rule"
    rule: str
    found: str
    rule_span: Span

    def secondary(self) -> tuple[Label, ...]:
        return (Label(self.rule_span, f"decides once per {self.rule}"),)

    def helps(self) -> tuple[Help, ...]:
        finer = Help(f"decide per {self.found}", Edit(self.rule_span, self.found))
        if self.rule == "step":
            return (finer, Help("or reduce the value: `mean(x, to = step)`"))
        return (finer, Help(f"or reduce the value: `mean(x, to = {self.rule})`"))


@dataclass(frozen=True, slots=True)
class NotPerToken(Diagnostic):
    code = "MC0212"
    title = "{needs} needs a value per token"
    label = "{found}"
    needs: str
    found: str
    sources: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        return (f"the sources with tokens are {words(self.sources, 'and')}",)


@dataclass(frozen=True, slots=True)
class ReduceToFiner(Diagnostic):
    code = "MC0213"
    title = "cannot reduce a value per {found} to {to}"
    label = "already as coarse as that"
    found: str
    to: str


@dataclass(frozen=True, slots=True)
class MisplacedAccumulate(Diagnostic):
    code = "MC0214"
    title = "an account adds up an account"
    label = "`accumulate` within `accumulate`"
    note = "an account belongs to the cells of a rule, and it is cleared where the rule computes"

    def helps(self) -> tuple[Help, ...]:
        return (Help("add up what is measured, and combine accounts: `accumulate(x) * accumulate(y, into = other)`"),)


@dataclass(frozen=True, slots=True)
class LateCondition(Diagnostic):
    """The block output read where the decision about computing it is made."""

    code = "MC0215"
    title = "`block_output` is not known when the rule decides"
    label = "known only after the blocks have run"

    def helps(self) -> tuple[Help, ...]:
        return (Help("give it a name with `signal`: a rule then reads the value of the previous step"),)


@dataclass(frozen=True, slots=True)
class LateMixture(Diagnostic):
    """A late value combined in place with one of the running step."""

    code = "MC0216"
    title = "a value of `block_output` is mixed with one known before the blocks run"
    label = "{which}"
    note = "`block_output` is read after the blocks have run, so the next step uses its value"
    which: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("make a `signal` of the part with `block_output` and combine that signal"),)


@dataclass(frozen=True, slots=True)
class SignalCycle(Diagnostic):
    code = "MC0217"
    title = "the signal `{name}` is defined by itself"
    label = "refers back to itself"
    name: str
    path: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        return (" uses ".join(f"`{name}`" for name in self.path),)


@dataclass(frozen=True, slots=True)
class SecondAccount(Diagnostic):
    """Two sums in one rule: a cell has one account, which the first sum would feed and the second read."""

    code = "MC0218"
    title = "the account `{name}` sums two things in one rule"
    label = "a second sum"
    name: str
    first: Span

    def secondary(self) -> tuple[Label, ...]:
        return (Label(self.first, "the first sum"),)

    def helps(self) -> tuple[Help, ...]:
        return (Help("give one of them an account of its own: `accumulate(x, into = other)`"),)


@dataclass(frozen=True, slots=True)
class UndefinedValue(Diagnostic):
    """An operation that has no value for some number that can stand there."""

    code = "MC0219"
    title = "the expression has no value"
    label = "{why}"
    why: str


@dataclass(frozen=True, slots=True)
class DefaultOutsideRange(Diagnostic):
    code = "MC0220"
    title = "the default of `{name}` lies outside of its range"
    label = "not within {low} to {high}"
    name: str
    low: str
    high: str
    range_span: Span

    def secondary(self) -> tuple[Label, ...]:
        return (Label(self.range_span, "the range"),)


@dataclass(frozen=True, slots=True)
class EmptyRange(Diagnostic):
    code = "MC0221"
    title = "the range of `{name}` leaves no choice"
    label = "ends at or below its beginning"
    name: str


@dataclass(frozen=True, slots=True)
class MissingRange(Diagnostic):
    code = "MC0222"
    title = "the parameter `{name}` has no range"
    label = "what values may it take?"
    note = "a value outside of the range is refused wherever it is given"
    name: str
    proposal: str

    def helps(self) -> tuple[Help, ...]:
        assert self.span is not None
        return (Help("state one", Edit(self.span.after(), self.proposal)),)


@dataclass(frozen=True, slots=True)
class UnitMismatch(Diagnostic):
    code = "MC0223"
    title = "{left} and {right} do not go together"
    label = "{right}"
    left: str
    right: str
    left_span: Span

    def secondary(self) -> tuple[Label, ...]:
        return (Label(self.left_span, self.left),)


@dataclass(frozen=True, slots=True)
class NotAShare(Diagnostic):
    """A plain number where a percentage belongs."""

    code = "MC0224"
    title = "{what} must be a percentage, found {found}"
    label = "not a percentage"
    what: str
    found: str
    proposal: str | None

    def helps(self) -> tuple[Help, ...]:
        if self.proposal is None or self.span is None:
            return (Help("declare the parameter with `%`: `param share = 50% in 0%..100%`"),)
        return (Help("write it with `%`", Edit(self.span, self.proposal)),)


@dataclass(frozen=True, slots=True)
class NotWhole(Diagnostic):
    code = "MC0225"
    title = "{what} must be a whole number"
    label = "may have a fraction"
    what: str
    literal: bool

    def notes(self) -> tuple[str, ...]:
        return () if self.literal else ("a parameter is whole if its default and both ends of its range are",)


@dataclass(frozen=True, slots=True)
class OutOfBounds(Diagnostic):
    code = "MC0226"
    title = "{what} must lie between {low} and {high}"
    label = "{found}"
    what: str
    low: str
    high: str
    found: str = "outside"


@dataclass(frozen=True, slots=True)
class NotConstant(Diagnostic):
    code = "MC0227"
    title = "{what} must be known before the run"
    label = "varies during the run"
    what: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("use numbers and parameters here"),)


@dataclass(frozen=True, slots=True)
class Unused(Diagnostic):
    code = "MC0228"
    title = "the {what} `{name}` has no effect"
    label = "nothing that a phase does depends on it"
    what: str
    name: str
    base: tuple[str, ...]  # the names that the policy inherits

    def helps(self) -> tuple[Help, ...]:
        near = nearest(self.name, self.base)
        if near is not None and self.span is not None:
            return (Help(f"did you mean `{near}` of the base?", Edit(self.span, near)),)
        return (Help("use it in a phase, or take it out"),)


@dataclass(frozen=True, slots=True)
class NoPast(Diagnostic):
    """An earlier value of something that has none."""

    code = "MC0253"
    title = "`{function}` has no earlier value to give"
    label = "{why}"
    function: str
    why: str


@dataclass(frozen=True, slots=True)
class NotClocked(Diagnostic):
    """A running sum or product of something that the clock does not settle."""

    code = "MC0254"
    title = "`cumulative` adds up what the clock alone settles"
    label = "more than numbers, tables and clock values"
    note = "it runs over all of the chunk's steps, whether they were computed or not"

    def helps(self) -> tuple[Help, ...]:
        return (Help("what is measured is added up by `accumulate(x)`, since the cell was last computed"),)


@dataclass(frozen=True, slots=True)
class PastFirst(Diagnostic):
    """An earlier tensor where the one of the running step belongs."""

    code = "MC0255"
    title = "`{function}` measures the tensor of the running step"
    label = "a tensor of an earlier step"
    function: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("the earlier one comes second: `rel_l1(x, kept(x))`"),)
