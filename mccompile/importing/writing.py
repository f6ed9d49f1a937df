"""The text of a policy that was made from another tool's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from mccompile.diagnostics.source import Source
from mccompile.language.coefficients import fit_of
from mccompile.language.fmt import format_policy
from mccompile.language.parse import parse

KEEP_ALL = ("layers blocks[*] { keep residual }",)


@dataclass(slots=True)
class PolicyDraft:
    """A policy in parts. name: of the policy. says: its first comment. The others are declarations as text."""

    name: str
    says: str
    params: list[str] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    layers: tuple[str, ...] = KEEP_ALL
    sections: list[str] = field(default_factory=list)

    def param(self, name: str, value: float, low: float, high: float, unit: str = "") -> str:
        """Declares a parameter whose range holds the value as well; returns its name."""
        ends = f"{number(min(low, value))}..{number(max(high, value))}"
        written = f"{number(value)} {unit}".strip() if unit else number(value)
        self.params.append(f"param {name} = {written} in {ends}")
        return name

    def text(self, notes: list[str]) -> str:
        """The policy in its one layout; the notes are further comments."""
        lines = [f"policy {self.name} {{", f"# {self.says}", *(f"# {note}" for note in notes)]
        body = [*self.params, *self.signals, *self.phases, *self.layers, *self.sections]
        return format_policy(parse(Source.of_text("\n".join([*lines, *body, "}"]), f"{self.name}.policy")))


def number(value: float) -> str:
    """A number as the language writes it."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def polynomial(coefficients: tuple[float, ...]) -> str:
    """The coefficients: the name of the shipped fit where they are one, else the list."""
    known = fit_of(coefficients)
    return f'"{known.name}"' if known is not None else f"[{', '.join(map(number, coefficients))}]"


def bins(mask: tuple[bool, ...]) -> str:
    """`compute 6 reuse 1 compute 2 ...`."""
    found: list[tuple[bool, int]] = []
    for step in mask:
        if found and found[-1][0] == step:
            found[-1] = (step, found[-1][1] + 1)
        else:
            found.append((step, 1))
    return " ".join(f"{'compute' if one else 'reuse'} {n}" for one, n in found)


def ranges(steps: list[int]) -> str:
    """`0..4, 7` of steps in order."""
    found: list[list[int]] = []
    for step in steps:
        if found and found[-1][1] == step - 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in found)
