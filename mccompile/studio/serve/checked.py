"""A policy text while it is written: what is wrong with it and where, its parameters, and its plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.render import render_one
from mccompile.diagnostics.source import Source, Span
from mccompile.language.load import load_choices
from mccompile.policy.bind import BoundPolicy, Quantity, bind
from mccompile.policy.cells import Plan, PlannedAction
from mccompile.policy.choosing import load_chosen
from mccompile.policy.groups import bounds_of
from mccompile.policy.phases import Grid
from mccompile.policy.standing import sound_plan
from mccompile.studio.serve.errors import RequestRefused

Values = Mapping[str, float | str]  # of parameters in their own units, and the alternatives of choices
MOST_TEXT = 50_000  # characters of a policy; the longest that we know has a thousand
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class TextPlace:
    """Where in the text, from 1. start, end: offsets as browsers count them, in UTF-16 units."""

    line: int
    column: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One error. text: as the command line shows it. place: None where it lies in no line of this text."""

    code: str
    message: str
    text: str
    place: TextPlace | None


@dataclass(frozen=True, slots=True)
class Knob:
    """A parameter in its own unit: its default, and the ends of its range. whole: it takes no fractions."""

    name: str
    default: float
    low: float
    high: float
    whole: bool
    unit: str


@dataclass(frozen=True, slots=True)
class OpenChoice:
    """A choice of the policy, and the names of its alternatives; the first one holds where none is picked."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring steps of a plan with one phase and one action.

    phase: "" where it is not known beforehand. region: the name of the regions that the plan is of; "" without one.
    """

    first: int
    last: int
    phase: str
    action: PlannedAction
    region: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of a text. stretches: of the plan, or of that of each region; none where a problem is.

    notes: what the plans make void.
    """

    policy: str
    problems: tuple[Problem, ...]
    knobs: tuple[Knob, ...]
    choices: tuple[OpenChoice, ...]
    steps: int
    stretches: tuple[Stretch, ...]
    notes: tuple[str, ...]


def source_of(text: str, name: str, folder: Path) -> Source:
    """A text of the page as the file that it would be in the folder, beyond which it reads nothing.

    Raises RequestRefused (MC0763) for a text that is too long, or a name that is none.
    """
    if len(text) > MOST_TEXT:
        why = f"the policy has {len(text):,} characters, and the page takes {MOST_TEXT:,}"
        raise RequestRefused(413, why, "shorten it; a policy of a thousand characters is long")
    if NAME.fullmatch(name) is None:
        raise RequestRefused(400, f"`{name:.80}` is no name for a policy", "use letters, digits, `_` and `-`")
    return Source(f"{name}.policy", text.replace("\r\n", "\n"), folder / f"{name}.policy")


def bound_of(source: Source, values: Values) -> BoundPolicy:
    """The policy with its choices settled and values of its parameters, each in its own unit. Raises PolicyError."""
    found = load_chosen(source, values)
    units = {p.name: p.unit for p in found.policy.params}
    return bind(found.policy, {n: Quantity.of(v, units.get(n, ""), f"{v:g}") for n, v in found.numbers.items()})


def check_text(source: Source, values: Values, grid: Grid) -> Checked:
    """Everything that is known of a text before it runs. A problem is part of the answer."""
    knobs: tuple[Knob, ...] = ()
    choices: tuple[OpenChoice, ...] = ()
    try:
        choices = tuple(OpenChoice(name, words) for name, words in load_choices(source).items())
        picks = {name: word for name, word in values.items() if isinstance(word, str)}
        knobs = tuple(_knob(p) for p in load_chosen(source, picks).policy.params)
        bound = bound_of(source, values)
        plans = {group: sound_plan(own, grid) for group, own in bounds_of(bound).items()}
    except PolicyError as error:
        return Checked("", problems_of(error.diagnostics, source), knobs, choices, grid.steps, (), ())
    stretches = tuple(stretch for group, made in plans.items() for stretch in _stretches(made, group))
    notes = tuple(dict.fromkeys(note for made in plans.values() for note in made.notes))
    return Checked(bound.ir.name, (), knobs, choices, grid.steps, stretches, notes)


def problems_of(diagnostics: Iterable[Diagnostic], source: Source) -> tuple[Problem, ...]:
    """Diagnostics as the page shows them."""
    return tuple(Problem(d.code, d.message(), render_one(d), _place(d.span, source)) for d in diagnostics)


def _place(span: Span | None, source: Source) -> TextPlace | None:
    if span is None or span.source != source:
        return None
    start, end = (len(source.text[:offset].encode("utf-16-le")) // 2 for offset in (span.start, span.end))
    return TextPlace(span.line, span.column, start, end)


def _knob(param: ir.Param) -> Knob:
    scale = 100.0 if param.unit == "%" else 1.0
    default, low, high = (round(scale * v, 9) for v in (param.default, param.low, param.high))
    return Knob(param.name, default, low, high, param.whole, param.unit)


def _stretches(made: Plan, group: str) -> Iterable[Stretch]:
    begun = made.cells[0]
    for before, cell in zip(made.cells, (*made.cells[1:], None), strict=True):
        if cell is None or (cell.phase, cell.action) != (begun.phase, begun.action):
            phase = "" if begun.phase is None else made.phases[begun.phase]
            yield Stretch(begun.step, before.step, phase, begun.action, group)
            begun = cell or begun
