"""Errors of binding and planning, MC03xx: a policy meets its numbers and its step grid."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Help, nearest, words


@dataclass(frozen=True, slots=True)
class UnknownParameter(Diagnostic):
    """A value for a parameter that the policy does not have."""

    code = "MC0301"
    title = "policy `{policy}` has no parameter `{name}`"

    policy: str
    name: str
    known: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        return (f"its parameters are {words(self.known, 'and')}" if self.known else "it has no parameters",)

    def helps(self) -> tuple[Help, ...]:
        near = nearest(self.name, self.known)
        return (Help(f"did you mean `{near}`?"),) if near is not None else ()


@dataclass(frozen=True, slots=True)
class ParameterOutOfRange(Diagnostic):
    """A value outside the range that the policy declares."""

    code = "MC0302"
    title = "parameter `{name}` of policy `{policy}` is out of its range"
    label = "its range"
    note = "{value:g} is not in {low:g}..{high:g}"

    policy: str
    name: str
    value: float
    low: float
    high: float
    unit: str

    def helps(self) -> tuple[Help, ...]:
        share = ", a share: 1 is 100%" if self.unit == "%" else ""
        return (Help(f"choose a value from {self.low:g} to {self.high:g}{share}"),)


@dataclass(frozen=True, slots=True)
class ParameterNotWhole(Diagnostic):
    """A fraction for a parameter that counts something."""

    code = "MC0303"
    title = "parameter `{name}` of policy `{policy}` must be a whole number"
    label = "counts something"
    note = "{value:g} is not whole"

    policy: str
    name: str
    value: float

    def helps(self) -> tuple[Help, ...]:
        return (Help(f"choose {self.value // 1:g} or {self.value // 1 + 1:g}"),)


@dataclass(frozen=True, slots=True)
class UnknownPick(Diagnostic):
    """A word for a choice that the policy does not have, or that is none of its alternatives."""

    code = "MC0310"
    title = "policy `{policy}` has no alternative `{found}` of a choice `{name}`"

    policy: str
    name: str
    found: str
    known: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        if not self.known:
            return (f"`{self.name}` is none of its choices, and the value of a parameter is a number",)
        return (f"the alternatives of `{self.name}` are {words(self.known, 'and')}",)

    def helps(self) -> tuple[Help, ...]:
        if not self.known:
            return (Help(f"give a number, as in `--set {self.name}=0.1`, if it is a parameter"),)
        near = nearest(self.found, self.known)
        return (Help("choose one of them" if near is None else f"did you mean `{near}`?"),)


@dataclass(frozen=True, slots=True)
class ParameterUnit(Diagnostic):
    """A value in another unit than the parameter has."""

    code = "MC0309"
    title = "`{written}` has not the unit of parameter `{name}` of policy `{policy}`"
    label = "its unit"

    policy: str
    name: str
    written: str
    unit: str

    def helps(self) -> tuple[Help, ...]:
        forms = {"": "a plain number, such as `0.2`", "%": "a percentage, such as `60%`"}
        return (Help(f"give {forms.get(self.unit, f'a number of {self.unit}, such as `5` or `5 {self.unit}`')}"),)


@dataclass(frozen=True, slots=True)
class CountInvalid(Diagnostic):
    """A number of steps, refreshes or chunks, or the n of `every`, that the parameters make too small or a fraction."""

    code = "MC0304"
    title = "invalid count in {place} of policy `{policy}`"
    label = "this count"
    note = "with these parameters it is {value:g}"

    policy: str
    place: str
    value: float
    least: int

    def helps(self) -> tuple[Help, ...]:
        return (Help(f"choose parameters that make it a whole number of at least {self.least}"),)


@dataclass(frozen=True, slots=True)
class MaskTooShort(Diagnostic):
    """A step mask that says nothing about the last steps of the run."""

    code = "MC0305"
    title = "the step mask of phase `{phase}` of policy `{policy}` is shorter than the run"
    label = "says what {entries} steps do"
    note = "the mask has {entries} entries, the run has {steps} steps"

    policy: str
    phase: str
    entries: int
    steps: int

    def helps(self) -> tuple[Help, ...]:
        return (Help(f"give the mask {self.steps} entries, or run {self.entries} steps"),)


@dataclass(frozen=True, slots=True)
class StepsUncovered(Diagnostic):
    """Phases that can all be over before the run is."""

    code = "MC0306"
    title = "no phase of policy `{policy}` covers step {first}"
    label = "can be over before"
    note = "all phases can be over by then, and the run has {steps} steps"

    policy: str
    first: int
    steps: int

    def helps(self) -> tuple[Help, ...]:
        return (Help("end the policy with a phase that has neither `for` nor `until`: it lasts to the end of the run"),)


@dataclass(frozen=True, slots=True)
class RangeOutsideRun(Diagnostic):
    """A `between` range that no step of the run falls into."""

    code = "MC0307"
    title = "the range of phase `{phase}` of policy `{policy}` holds no step of this run"
    label = "holds no step"

    policy: str
    phase: str
    clock: str
    low: float
    high: float
    least: float
    most: float

    def notes(self) -> tuple[str, ...]:
        return (
            f"the phase holds while {self.low:g} <= {self.clock} < {self.high:g}",
            f"in this run {self.clock} goes from {self.least:g} to {self.most:g}",
        )

    def helps(self) -> tuple[Help, ...]:
        return (Help("choose a range that holds at least one step, or remove the phase"),)


@dataclass(frozen=True, slots=True)
class WeightUndefined(Diagnostic):
    """A weight of what stands in for kept results that is no number at a step that may reuse them."""

    code = "MC0311"
    title = "what stands in under policy `{policy}` has no value at step {step}"
    label = "this weight"
    note = "there it is {value:g}, and the step may reuse"

    policy: str
    step: int
    value: float

    def helps(self) -> tuple[Help, ...]:
        return (Help("keep a divisor away from 0, such as `max(step - 4, 1)`, or compute the step"),)


@dataclass(frozen=True, slots=True)
class TextMalformed(Diagnostic):
    """The text form of an IR or a plan that does not read back."""

    code = "MC0308"
    title = "malformed text of {what}"
    label = "{cause}"

    what: str
    cause: str

    def helps(self) -> tuple[Help, ...]:
        return (Help(f"write it again with the tool that shows {self.what}"),)


