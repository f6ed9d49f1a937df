"""MC020x: a word has no meaning, or two meanings."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Edit, Help, Label, nearest, words
from mccompile.diagnostics.source import Span


def _did_you_mean(span: Span | None, found: str, known: tuple[str, ...]) -> tuple[Help, ...]:
    meant = nearest(found, known)
    if meant is None or span is None:
        return ()
    return (Help(f"did you mean `{meant}`?", Edit(span, meant)),)


@dataclass(frozen=True, slots=True)
class UnknownName(Diagnostic):
    """A name in an expression that nothing declares."""

    code = "MC0201"
    title = "unknown name `{name}`"
    label = "neither a parameter, a signal, a source nor a clock value"
    name: str
    known: tuple[str, ...]

    def helps(self) -> tuple[Help, ...]:
        return _did_you_mean(self.span, self.name, self.known)


@dataclass(frozen=True, slots=True)
class UnknownFunction(Diagnostic):
    code = "MC0202"
    title = "unknown function `{name}`"
    label = "no such function"
    name: str
    known: tuple[str, ...]

    def helps(self) -> tuple[Help, ...]:
        return _did_you_mean(self.span, self.name, self.known)


@dataclass(frozen=True, slots=True)
class UnknownOption(Diagnostic):
    """A name before `=` or `:` that the function or the section does not have."""

    code = "MC0203"
    title = "unknown option `{name}` of `{owner}`"
    label = "no such option"
    name: str
    owner: str
    known: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        return (f"`{self.owner}` has {words(self.known, 'and')}",)

    def helps(self) -> tuple[Help, ...]:
        return _did_you_mean(self.span, self.name, self.known)


@dataclass(frozen=True, slots=True)
class OldForm(Diagnostic):
    """An option that the language had once."""

    code = "MC0256"
    title = "`{option}` has become a value"
    label = "say which value is meant"
    option: str
    kept: str
    before: str

    def helps(self) -> tuple[Help, ...]:
        assert self.span is not None
        return (
            Help("for `since = compute`", Edit(self.span, self.kept)),
            Help(f"`since = step` is `{self.before}`, and what is meant where nothing is said"),
        )


@dataclass(frozen=True, slots=True)
class InvalidWord(Diagnostic):
    """A value that is not one of the words an option knows."""

    code = "MC0204"
    title = "invalid value `{found}` of `{option}`"
    option: str
    found: str
    choices: tuple[str, ...]
    why: str = ""

    def notes(self) -> tuple[str, ...]:
        return (self.why,) if self.why else ()

    def span_label(self) -> str:
        return f"expected {words(self.choices)}"

    def helps(self) -> tuple[Help, ...]:
        truth = {"true": "yes", "on": "yes", "false": "no", "off": "no"}.get(self.found.lower())
        if truth in self.choices and self.span is not None:
            return (Help(f"yes and no are written so: `{truth}`", Edit(self.span, truth)),)
        return _did_you_mean(self.span, self.found, self.choices)


@dataclass(frozen=True, slots=True)
class DefinedTwice(Diagnostic):
    code = "MC0205"
    title = "the {what} `{name}` is given twice"
    label = "given again"
    what: str
    name: str
    first: Span

    def secondary(self) -> tuple[Label, ...]:
        return (Label(self.first, "first given here"),)


@dataclass(frozen=True, slots=True)
class ReservedName(Diagnostic):
    """A parameter or a signal named by a word of the language."""

    code = "MC0206"
    title = "`{name}` is a word of the language"
    label = "cannot name a {what}"
    name: str
    what: str

    def helps(self) -> tuple[Help, ...]:
        return (Help(f"choose another name, such as `my_{self.name}`"),)


@dataclass(frozen=True, slots=True)
class MissingArgument(Diagnostic):
    code = "MC0207"
    title = "`{function}` needs `{parameter}`"
    label = "called without it"
    function: str
    parameter: str
    signature: str

    def notes(self) -> tuple[str, ...]:
        return (f"`{self.signature}`; `x | {self.function}(...)` gives the first one",)


@dataclass(frozen=True, slots=True)
class TooManyArguments(Diagnostic):
    code = "MC0208"
    title = "too many arguments of `{function}`"
    label = "one too many"
    function: str
    signature: str

    def notes(self) -> tuple[str, ...]:
        return (f"`{self.signature}`; `x | {self.function}(...)` gives the first one",)


@dataclass(frozen=True, slots=True)
class UnknownSet(Diagnostic):
    """The name of a fitted polynomial or a measured table that is not shipped, or not in the file that it names."""

    code = "MC0209"
    title = "unknown {kind} `{name}`"
    label = "no calibrated set has this name"
    kind: str
    name: str
    known: tuple[str, ...]
    file: str = ""

    def notes(self) -> tuple[str, ...]:
        if self.file and not self.known:
            return (f"the file `{self.file}` has no {self.kind}",)
        return (f"{f'those of `{self.file}`' if self.file else 'the shipped ones'} are {words(self.known, 'and')}",)

    def helps(self) -> tuple[Help, ...]:
        meant = nearest(self.name, self.known)
        if meant is None or self.span is None:
            return (Help("give the numbers in a list: `[1.5, -0.2]`"),)
        place = f"{self.file}:" if self.file else ""
        return (Help(f"did you mean `{meant}`?", Edit(self.span, f'"{place}{meant}"')),)


@dataclass(frozen=True, slots=True)
class RefusedSets(Diagnostic):
    """A file of calibrated sets that is not read."""

    code = "MC0270"
    title = "the file `{path}` holds no calibrated sets"
    label = "{why}"
    note = "a policy names sets of a `.toml` file in its own folder or below; `mccompile calibrate` writes such files"
    path: str
    why: str
