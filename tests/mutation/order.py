"""Which tests a mutant is run against, and in which order: those first that most likely see it soon.

A test that has seen mutants of the same function comes early, and so does a quick one. Before all others come those
that run the changed line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.mutation.codes import Change
from tests.mutation.operators import Mutant
from tests.mutation.rooms import OUT, REACHED, Room

ROUND = 0.05
"""Seconds that a test costs beside its own."""


@dataclass(frozen=True, slots=True)
class Traced:
    """seconds: of processor time, traced. lines: by function. shared: the fixtures that it shares with other tests."""

    name: str
    seconds: float
    lines: Mapping[str, frozenset[int]]
    shared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What many tests share. seconds: of filling it. functions: what filling it calls."""

    seconds: float
    functions: frozenset[str]


@dataclass(slots=True)
class Order:
    """seconds: of tests that have run here, in place of those traced. without: tests that fail without a change too."""

    tests: list[Traced]
    kept: Mapping[str, Kept]
    kills: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)

    def killed(self, mutant: Mutant, by: str) -> None:
        for scope in (mutant.scope, "*"):
            self.kills.setdefault((mutant.file, scope), Counter())[by] += 1

    def calling(self, mutant: Mutant, made: Change) -> list[list[Traced]]:
        """The tests that run the changed line, those that call its function, and those that call others of its file.

        Where nothing runs the line itself, the last line before it that a test runs stands for it.
        """
        if made.lasting or not any(made.reached in test.lines for test in self.tests):
            of_file = f"{mutant.file}:"
            return [[t for t in self.tests if any(what.startswith(of_file) for what in t.lines)]]
        calls = [test for test in self.tests if made.reached in test.lines]
        line = max((n for t in calls for n in t.lines[made.reached] if n <= mutant.line), default=mutant.line)
        running = [test for test in calls if line in test.lines[made.reached]]
        names = {test.name for test in running}
        return [running, [test for test in calls if test.name not in names]]

    def cost(self, test: Traced, made: Change) -> float:
        """Of a test under a mutant: its own seconds, and those of filling anew what the change may alter."""
        anew = [self.kept[one] for one in test.shared if one in self.kept]
        own = self.seconds.get(test.name, test.seconds)
        return own + ROUND + sum(one.seconds for one in anew if made.reached in one.functions)

    def chosen(self, mutant: Mutant, made: Change, most: float) -> list[str]:
        """Names of tests until their seconds are `most`; one at least, if there is any."""
        function = self.kills.get((mutant.file, mutant.scope), Counter())
        file = self.kills.get((mutant.file, "*"), Counter())
        number, others = 2.0 + function.total(), 2.0 + file.total()

        def rank(test: Traced) -> float:
            chance = 0.05 + function[test.name] / number + 0.3 * file[test.name] / others
            return self.cost(test, made) / chance

        taken, seconds = [], 0.0
        for some in self.calling(mutant, made):
            for test in sorted((t for t in some if t.name not in self.without), key=rank):
                seconds += self.cost(test, made)
                if taken and seconds > most:
                    return taken
                taken.append(test.name)
        return taken


def order(room: Room) -> Order:
    """Of the tests of a room that `reach` has traced. Raises SystemExit where it has not run."""
    if not REACHED.exists():
        raise SystemExit("run `python -m tests.mutation reach` first")
    told = json.loads(REACHED.read_text())
    found = {name: value for name, value in told["tests"].items() if name.startswith(room.tests)}
    kept = {name: Kept(seconds, frozenset(lines)) for name, (seconds, lines) in told["kept"].items()}
    tests = [Traced(name, value[0], _sets(value[1]), tuple(value[2])) for name, value in found.items()]
    shared = {name: _sets(lines) for name, (_, lines) in told["kept"].items()}
    return Order([_with(test, shared) for test in tests], kept)


def kills_of(room: str, found: Iterable[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """Which test saw which mutant, in the sessions of this checkout."""
    place = OUT / f"{room}.jsonl"
    by_key = {mutant.key: mutant for mutant in found}
    for line in place.read_text("utf-8").splitlines() if place.exists() else []:
        told = json.loads(line)
        if told["by"] and told["key"] in by_key:
            yield by_key[told["key"]], told["by"]


def _sets(lines: Mapping[str, list[int]]) -> dict[str, frozenset[int]]:
    return {what: frozenset(numbers) for what, numbers in lines.items()}


def _with(test: Traced, shared: Mapping[str, Mapping[str, frozenset[int]]]) -> Traced:
    """A test, and what filling its shared fixtures runs."""
    lines = dict(test.lines)
    for one in test.shared:
        for what, numbers in shared.get(one, {}).items():
            lines[what] = lines.get(what, frozenset()) | numbers
    return Traced(test.name, test.seconds, lines, test.shared)
