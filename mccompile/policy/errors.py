"""Errors of binding and planning (MC03xx): frozen data, one class per code, raised together in a PlanError."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. Subclasses give the code, the title, and say where, why and what to do."""

    code: ClassVar[str]
    title: ClassVar[str]

    def place(self) -> str:
        """Where it is wrong, in the user's words."""
        raise NotImplementedError

    def notes(self) -> tuple[str, ...]:
        """Why it is wrong."""
        return ()

    def helps(self) -> tuple[str, ...]:
        """What to do about it."""
        return ()

    def render(self) -> str:
        """The diagnostic as text."""
        lines = [f"error[{self.code}]: {self.title}", f"  --> {self.place()}"]
        lines += [f"   = note: {n}" for n in self.notes()]
        return "\n".join(lines + [f"help: {h}" for h in self.helps()])


class PlanError(Exception):
    """Everything that is wrong with the numbers or the plan of a policy, all at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n\n".join(p.render() for p in self.problems)


def _number(value: float) -> str:
    return f"{value:g}"


@dataclass(frozen=True, slots=True)
class UnknownParameter(Problem):
    policy: str
    name: str
    known: tuple[str, ...]
    code = "MC0301"
    title = "unknown parameter"

    def place(self) -> str:
        return f"parameter `{self.name}` of policy `{self.policy}`"

    def notes(self) -> tuple[str, ...]:
        names = ", ".join(f"`{k}`" for k in self.known)
        return (f"the policy has the parameters {names}" if names else "the policy has no parameters",)

    def helps(self) -> tuple[str, ...]:
        near = difflib.get_close_matches(self.name, self.known, n=1)
        return (f"did you mean `{near[0]}`?",) if near else ()


@dataclass(frozen=True, slots=True)
class ParameterOutOfRange(Problem):
    policy: str
    name: str
    value: float
    low: float
    high: float
    code = "MC0302"
    title = "parameter out of its range"

    def place(self) -> str:
        return f"parameter `{self.name}` of policy `{self.policy}`"

    def notes(self) -> tuple[str, ...]:
        return (f"{_number(self.value)} is not in {_number(self.low)}..{_number(self.high)}",)

    def helps(self) -> tuple[str, ...]:
        return (f"choose a value from {_number(self.low)} to {_number(self.high)}",)


@dataclass(frozen=True, slots=True)
class ParameterNotWhole(Problem):
    policy: str
    name: str
    value: float
    code = "MC0303"
    title = "parameter must be a whole number"

    def place(self) -> str:
        return f"parameter `{self.name}` of policy `{self.policy}`"

    def notes(self) -> tuple[str, ...]:
        return (f"{self.value!r} is not a whole number",)

    def helps(self) -> tuple[str, ...]:
        return ("set it to a whole number",)


@dataclass(frozen=True, slots=True)
class CountInvalid(Problem):
    policy: str
    phase: str
    value: float
    least: int
    code = "MC0304"
    title = "invalid count"

    def place(self) -> str:
        return f"phase `{self.phase}` of policy `{self.policy}`"

    def notes(self) -> tuple[str, ...]:
        return (f"its count is {_number(self.value)} with these parameters",)

    def helps(self) -> tuple[str, ...]:
        return (f"make it a whole number of at least {self.least}",)


@dataclass(frozen=True, slots=True)
class MaskTooShort(Problem):
    policy: str
    phase: str
    entries: int
    steps: int
    code = "MC0305"
    title = "step mask shorter than the run"

    def place(self) -> str:
        return f"phase `{self.phase}` of policy `{self.policy}`"

    def notes(self) -> tuple[str, ...]:
        return (f"the mask has {self.entries} entries, the run {self.steps} steps",)

    def helps(self) -> tuple[str, ...]:
        return (f"give the mask {self.steps} entries, or run {self.entries} steps",)


@dataclass(frozen=True, slots=True)
class StepsUncovered(Problem):
    policy: str
    first: int
    steps: int
    code = "MC0306"
    title = "no phase covers a step"

    def place(self) -> str:
        return f"phases of policy `{self.policy}`"

    def notes(self) -> tuple[str, ...]:
        return (f"all phases can be over at step {self.first} of a run of {self.steps} steps",)

    def helps(self) -> tuple[str, ...]:
        return ("end the policy with a phase that has no span: it lasts for the rest of the run",)


@dataclass(frozen=True, slots=True)
class RangeOutsideRun(Problem):
    policy: str
    phase: str
    clock: str
    low: float
    high: float
    least: float
    most: float
    code = "MC0307"
    title = "range outside the run"

    def place(self) -> str:
        return f"phase `{self.phase}` of policy `{self.policy}`"

    def notes(self) -> tuple[str, ...]:
        span = f"{_number(self.low)} <= {self.clock} < {_number(self.high)}"
        run = f"{self.clock} goes from {_number(self.least)} to {_number(self.most)} in this run"
        return (f"no step has {span}", run)

    def helps(self) -> tuple[str, ...]:
        return ("choose a range that holds at least one step, or remove the phase",)


@dataclass(frozen=True, slots=True)
class TextMalformed(Problem):
    what: str
    line: int
    cause: str
    code = "MC0308"
    title = "malformed text"

    def place(self) -> str:
        return f"line {self.line} of the {self.what}"

    def notes(self) -> tuple[str, ...]:
        return (self.cause,)

    def helps(self) -> tuple[str, ...]:
        return (f"print the {self.what} again; its text form is not meant to be written by hand",)
