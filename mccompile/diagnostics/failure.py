"""The exceptions that stop a command. All of one family carry diagnostics; another one is for bugs of ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from mccompile.diagnostics.diagnostic import Diagnostic, Help, Label
from mccompile.diagnostics.render import render
from mccompile.diagnostics.source import Span


class Failure(Exception):
    """A refusal. Its diagnostics say what is wrong, where, and what helps; each code has a page in docs/errors."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("; ".join(f"{d.code}: {d.message()}" for d in self.diagnostics))

    def __str__(self) -> str:
        return render(self.diagnostics).removesuffix("\n")


class PolicyError(Failure):
    """A policy was refused. Carries every diagnostic of the phase that refused it, in order of place."""

    def __str__(self) -> str:
        return f"\n{render(self.diagnostics)}"


class InternalError(Exception):
    """A bug of ours, never the user's: an invariant of this package is broken. Commands show its traceback."""


@dataclass(frozen=True, slots=True)
class Stated(Diagnostic):
    """A diagnostic whose words are those of one case, and not of its class.

    stated: what is wrong. span: the words of the policy that ask for it, None where no policy does. marked: what is
    said at them. others: further words of a policy. place: where in the model, or in a file, "" for nowhere. causes
    and remedies: the lines of notes and of helps.
    """

    code: str  # type: ignore[misc]  # each class below has one code, and hands it to its one diagnostic
    stated: str
    marked: str
    others: tuple[Label, ...]
    place: str
    causes: tuple[str, ...]
    remedies: tuple[str, ...]

    def message(self) -> str:
        return self.stated

    def span_label(self) -> str:
        return self.marked

    def secondary(self) -> tuple[Label, ...]:
        return self.others

    def elsewhere(self) -> str:
        return self.place

    def notes(self) -> tuple[str, ...]:
        return self.causes

    def helps(self) -> tuple[Help, ...]:
        return tuple(Help(remedy) for remedy in self.remedies)


class StatedFailure(Failure):
    """A failure with one diagnostic, whose place in the model and cause are one sentence.

    span: the words of the policy that the model cannot serve, with what is `marked` at them, and `others` that have
    a part in it.
    """

    code: ClassVar[str]

    def __init__(
        self, message: str, help_text: str, *,
        span: Span | None = None, marked: str = "", others: tuple[Label, ...] = (), causes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        what = Stated(
            code=self.code, span=span, stated=message, marked=marked, others=others, place="", causes=causes,
            remedies=(help_text,),
        )  # fmt: skip
        super().__init__([what])


class PlacedFailure(Failure):
    """A failure with one diagnostic: a title of its class, and place, cause, remedy and further causes of the case."""

    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, place: str, cause: str, remedy: str, *further: str) -> None:
        self.place, self.cause, self.remedy = place, cause, remedy
        what = Stated(
            code=self.code, span=None, stated=self.title, marked="", others=(), place=place, causes=(cause, *further),
            remedies=(remedy,),
        )  # fmt: skip
        super().__init__([what])
