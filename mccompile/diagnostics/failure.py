"""The bases of what stops a command above the torch line. Below it, a phase reports all its Diagnostics at once."""

from __future__ import annotations

from typing import ClassVar


class Failure(Exception):
    """A refusal: a code with a page in docs/errors, what is wrong and where, and the remedy."""

    code: ClassVar[str]


class StatedFailure(Failure):
    """A failure whose place and cause are one sentence."""

    def __init__(self, message: str, help_text: str) -> None:
        super().__init__(f"error[{self.code}]: {message}\nhelp: {help_text}")


class PlacedFailure(Failure):
    """A failure with a title of its class, and place, cause and remedy of the case."""

    title: ClassVar[str]
    note: ClassVar[str]  # what the line of the cause begins with

    def __init__(self, place: str, cause: str, remedy: str) -> None:
        super().__init__(place, cause, remedy)
        self.place = place
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.title}\n  --> {self.place}\n{self.note}{self.cause}\nhelp: {self.remedy}"
