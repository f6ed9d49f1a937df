"""MC026x: alternatives of `choose`."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Help


@dataclass(frozen=True, slots=True)
class OneAlternative(Diagnostic):
    """A choice that leaves nothing to choose, in a policy whose bases do not have it."""

    code = "MC0260"
    title = "the choice `{name}` has one alternative"
    label = "nothing is left to choose"
    name: str
    only: str

    def helps(self) -> tuple[Help, ...]:
        return (Help(f"give another one: `choose {self.name} = {self.only} | ...`; or write `{self.only}` itself"),)


@dataclass(frozen=True, slots=True)
class SameAlternatives(Diagnostic):
    """Two alternatives that make the same policy, whatever else is chosen."""

    code = "MC0261"
    title = "the alternatives `{one}` and `{other}` of `{name}` make the same policy"
    label = "whichever of them is chosen, nothing differs"
    name: str
    one: str
    other: str

    def helps(self) -> tuple[Help, ...]:
        return (
            Help(f"say `{self.name}` where its alternative is to stand, or let the alternatives declare something"),
        )


@dataclass(frozen=True, slots=True)
class TooManyWays(Diagnostic):
    """More combinations of alternatives than are checked."""

    code = "MC0262"
    title = "the choices of the policy have {count} combinations"
    label = "more than are checked"
    note = "each of them is checked, and a policy may have {most}"
    count: int
    most: int

    def helps(self) -> tuple[Help, ...]:
        return (Help("split the policy: one file each extends it and settles some of the choices"),)
