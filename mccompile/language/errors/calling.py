"""MC0283 to MC0287: functions that policies define, and the files that hold them."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Edit, Help, nearest, words


@dataclass(frozen=True, slots=True)
class RecursiveFunction(Diagnostic):
    code = "MC0283"
    title = "the function `{name}` calls itself"
    label = "leads back to itself"
    name: str
    path: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        return (" calls ".join(f"`{name}`" for name in self.path),)

    def helps(self) -> tuple[Help, ...]:
        return (Help("a call is written out before anything runs; what follows the steps is `accumulate` or `smooth`"),)


@dataclass(frozen=True, slots=True)
class TooManyCalls(Diagnostic):
    """Calls that, written out, make expressions beyond all reason."""

    code = "MC0284"
    title = "the functions of the policy are too large when they are written out"
    label = "with this call they have more than {most:,} parts"
    most: int

    def helps(self) -> tuple[Help, ...]:
        return (Help("give what is used more than once a name with `signal`: it is then evaluated once"),)


@dataclass(frozen=True, slots=True)
class NotAParameter(Diagnostic):
    """A name in a function that only a policy could give a meaning."""

    code = "MC0285"
    title = "the function `{function}` does not know `{name}`"
    label = "none of its parameters"
    note = "a function knows its parameters, the sources and the clock values: it means the same in every policy"
    name: str
    function: str
    known: tuple[str, ...]

    def helps(self) -> tuple[Help, ...]:
        meant = nearest(self.name, self.known)
        if meant is not None and self.span is not None:
            return (Help(f"did you mean `{meant}`?", Edit(self.span, meant)),)
        if self.known:
            return (Help(f"its parameters are {words(self.known, 'and')}: make `{self.name}` one of them"),)
        return (Help(f"make `{self.name}` a parameter of the function"),)


@dataclass(frozen=True, slots=True)
class UnreadParameter(Diagnostic):
    code = "MC0287"
    title = "the function `{function}` does nothing with `{name}`"
    label = "its expression does not have it"
    name: str
    function: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("use it, or take it out"),)


@dataclass(frozen=True, slots=True)
class RefusedLibrary(Diagnostic):
    """A file that is no library beside this policy or below."""

    code = "MC0286"
    title = "the file `{path}` cannot be used"
    label = "{why}"
    note = "a library is a `.policy` file in the policy's own folder or below, and it holds functions alone"
    path: str
    why: str
