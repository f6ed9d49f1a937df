"""MC01xx: the text is not a policy."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Edit, Help, Label, nearest
from mccompile.diagnostics.source import Span

_EXPRESSIONS = "expressions within each other"


@dataclass(frozen=True, slots=True)
class UnexpectedWord(Diagnostic):
    """A word or sign that cannot stand where it stands."""

    code = "MC0101"
    title = "expected {wanted}, found {found}"
    label = "does not fit here"
    wanted: str
    found: str
    meant: str | None
    foreign: tuple[Help, ...] = ()
    opened: Span | None = None

    def secondary(self) -> tuple[Label, ...]:
        return () if self.opened is None else (Label(self.opened, "opened here and not closed before"),)

    def helps(self) -> tuple[Help, ...]:
        if self.foreign or self.meant is None or self.span is None:
            return self.foreign
        return (Help(f"did you mean `{self.meant}`?", Edit(self.span, self.meant)),)


@dataclass(frozen=True, slots=True)
class UnknownCharacter(Diagnostic):
    """A character that no policy contains."""

    code = "MC0102"
    title = "invalid character `{character}`"
    label = "not part of the language"
    character: str
    foreign: tuple[Help, ...] = ()

    def helps(self) -> tuple[Help, ...]:
        return self.foreign


@dataclass(frozen=True, slots=True)
class EndsTooEarly(Diagnostic):
    """The text ends inside of something that was opened."""

    code = "MC0103"
    title = "the policy ends too early, expected {wanted}"
    label = "the text ends here"
    wanted: str
    opened: Span | None

    def secondary(self) -> tuple[Label, ...]:
        return () if self.opened is None else (Label(self.opened, "opened here and never closed"),)


@dataclass(frozen=True, slots=True)
class UnclosedString(Diagnostic):
    """A string without its second quote."""

    code = "MC0104"
    title = "the string is not closed"
    label = "no `\"` before the end of the line"

    def helps(self) -> tuple[Help, ...]:
        assert self.span is not None
        return (Help("close the string", Edit(self.span.after(), '"')),)


@dataclass(frozen=True, slots=True)
class InvalidNumber(Diagnostic):
    """Digits that do not make a number."""

    code = "MC0105"
    title = "invalid number `{found}`"
    label = "{why}"
    note = "numbers are written `5`, `0.05`, `2e-3` or `40%`, sizes `2GB` or `512MiB`"
    found: str
    meant: str | None
    why: str = "cannot be read as a number"

    def helps(self) -> tuple[Help, ...]:
        if self.meant is None or self.span is None:
            return ()
        return (Help("write it in full", Edit(self.span, self.meant)),)


@dataclass(frozen=True, slots=True)
class ChainedComparison(Diagnostic):
    """`a < b < c` in a condition."""

    code = "MC0106"
    title = "comparisons cannot be chained in a condition"
    label = "a second comparison"
    note = "only the `while` of a phase accepts `low <= clock < high`"

    def helps(self) -> tuple[Help, ...]:
        return (Help("join two comparisons with `and`: `a < b and b < c`"),)


@dataclass(frozen=True, slots=True)
class SecondPolicy(Diagnostic):
    """More than one policy in one file."""

    code = "MC0107"
    title = "a second policy in one file"
    label = "begins here"

    def helps(self) -> tuple[Help, ...]:
        return (Help('give it a file of its own; `extends "other.policy"` reaches from one to the other'),)


@dataclass(frozen=True, slots=True)
class NotText(Diagnostic):
    """A file that cannot be read as UTF-8 text."""

    code = "MC0108"
    title = "cannot read `{path}`: {reason}"
    note = "a policy is a text file in UTF-8"
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class NoSuchPolicy(Diagnostic):
    """Neither a shipped policy nor a file."""

    code = "MC0109"
    title = "there is no policy `{name}`"
    label = "not found"
    note = "`mccompile policies` lists the policies that come with mccompile"
    name: str
    known: tuple[str, ...]

    def helps(self) -> tuple[Help, ...]:
        if self.name in self.known and self.span is not None:
            return (Help("a policy that comes with mccompile is named without quotes", Edit(self.span, self.name)),)
        meant = nearest(self.name.rpartition("/")[2].removesuffix(".policy"), self.known)
        here = () if meant is None else (Help(f"did you mean `{meant}`?"),)
        return (*here, Help("a policy file is named by its path, ending in `.policy`"))


@dataclass(frozen=True, slots=True)
class TooDeep(Diagnostic):
    """Expressions within expressions, beyond all reason."""

    code = "MC0110"
    title = "the policy is nested too deeply"
    label = "holds more than {limit} {what}"
    limit: int
    what: str = _EXPRESSIONS

    def helps(self) -> tuple[Help, ...]:
        if self.what != _EXPRESSIONS:
            return (Help("extend one of the first of them"),)
        return (Help("give parts of the expression a name with `signal`"),)
