"""A plugin of pytest that writes which lines of the product each test runs, and how long the test takes.

Fixtures of a session or of a module, and what functions of the tests remember, are filled once and used by many tests.
For each of them it writes what filling it ran, so that no mutant of such code is run against what was there before.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

import pytest

from tests.mutation.codes import ROOT, name

PRODUCT = str(ROOT / "mccompile")
OFTEN, LONG = 200, 20_000
"""Calls of a function, and lines of it, after which one test's run of it is no longer followed line by line.

From then on those lines are known at which it returns or raises.
"""
Lines: TypeAlias = defaultdict[CodeType, set[int]]
Cached: TypeAlias = "functools._lru_cache_wrapper[Any]"


def caches(*places: str) -> list[Cached]:
    """What functions of these packages remember."""
    found = (item for item in gc.get_objects() if type(item) is functools._lru_cache_wrapper)
    return [item for item in found if str(item.__module__).startswith(places)]


def cache_name(cache: Cached) -> str:
    return f"{cache.__module__}.{cache.__qualname__}"


def fixture_name(definition: pytest.FixtureDef[object], index: int) -> str:
    """Of one that many tests share. index: of its parameter."""
    return f"{definition.baseid}::{definition.argname}[{index}]"


class Tracer:
    """Follows the product's code. Collections lie in each other: what an inner one has seen, the outer one has too."""

    def __init__(self, rooms: Collection[str]) -> None:
        self._rooms = tuple(f"{PRODUCT}/{room}/" for room in rooms)
        self._open: list[Lines] = []
        self._calls, self._events = defaultdict[CodeType, int](int), defaultdict[CodeType, int](int)
        self._followed: dict[CodeType, bool] = {}
        self.filling: dict[CodeType, str] = {}
        """Code whose result is remembered, and its name."""
        self.begun: dict[str, float] = {}
        self.filled: dict[str, tuple[float, Lines]] = {}

    def begin(self) -> None:
        if not self._open:
            self._calls.clear()
            self._events.clear()
            sys.settrace(self._called)
        self._open.append(defaultdict(set))

    def end(self) -> Lines:
        done = self._open.pop()
        if not self._open:
            sys.settrace(None)
        else:
            for code, lines in done.items():
                self._open[-1][code] |= lines
        return done

    def begin_filling(self, what: str) -> None:
        for cache in caches("mccompile."):
            cache.cache_clear()
        self.begun[what] = time.process_time()
        self.begin()

    def end_filling(self, what: str) -> None:
        self.filled[what] = time.process_time() - self.begun[what], self.end()

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        followed = self._followed.get(code)
        if followed is None:
            followed = code.co_filename.startswith(self._rooms) and not code.co_name.startswith("<module>")
            self._followed[code] = followed
        if not followed:
            if code not in self.filling:
                return None
            self.begin_filling(self.filling[code])
            frame.f_trace_lines = False
            return self._returned
        self._calls[code] += 1
        self._open[-1][code].add(code.co_firstlineno)
        frame.f_trace_lines = self._calls[code] <= OFTEN
        return self._line

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        self._open[-1][code].add(frame.f_lineno)
        self._events[code] += 1
        if self._events[code] > LONG:
            frame.f_trace_lines = False
        return self._line

    def _returned(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "return":
            self.end_filling(self.filling[frame.f_code])
        return self._returned


@dataclass(eq=False)
class Reached:
    """place: the file that is written. It holds what tests ran, and what filling each shared thing ran.

    For each: seconds of processor time, lines by function, and, for a test, the shared fixtures that it takes.
    """

    place: Path
    rooms: Collection[str]
    tests: dict[str, tuple[float, Mapping[str, list[int]], list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tracer = Tracer(self.rooms)
        self._taken: list[str] = []

    def pytest_collection_finish(self) -> None:
        self._tracer.filling = {cache.__wrapped__.__code__: cache_name(cache) for cache in caches("tests.")}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if fixturedef.scope not in ("session", "module"):
            return (yield)
        what = fixture_name(fixturedef, request.param_index)
        self._tracer.begin_filling(what)
        try:
            return (yield)
        finally:
            self._tracer.end_filling(what)
            _, lines = self._tracer.filled[what]
            for inner in shared_fixtures(request._pyfuncitem, fixturedef.argnames):
                for code, numbers in self._tracer.filled[inner][1].items() if inner in self._tracer.filled else ():
                    lines[code] |= numbers

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        begun, before = time.process_time(), sum(seconds for seconds, _ in self._tracer.filled.values())
        self._tracer.begin()
        try:
            return (yield)
        finally:
            lines = self._tracer.end()
            filled = sum(seconds for seconds, _ in self._tracer.filled.values()) - before
            seconds = max(0.0, time.process_time() - begun - filled)
            self.tests[item.nodeid] = round(seconds, 3), _by_name(lines), shared_fixtures(item)

    def pytest_sessionfinish(self) -> None:
        known = json.loads(self.place.read_text()) if self.place.exists() else {"tests": {}, "kept": {}}
        kept = {what: (round(seconds, 3), _by_name(lines)) for what, (seconds, lines) in self._tracer.filled.items()}
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.place.write_text(json.dumps({"tests": known["tests"] | self.tests, "kept": known["kept"] | kept}))


def shared_fixtures(item: pytest.Item, among: Collection[str] | None = None) -> list[str]:
    """The names of what a test shares with others: fixtures of sessions and modules, each with the test's parameter."""
    if not isinstance(item, pytest.Function):
        return []
    found = [ones[-1] for what, ones in item._fixtureinfo.name2fixturedefs.items() if among is None or what in among]
    spec = item.callspec.indices if "callspec" in vars(item) else {}
    return [fixture_name(one, spec.get(one.argname, 0)) for one in found if one.scope in ("session", "module")]


def _by_name(lines: Lines) -> dict[str, list[int]]:
    """Comprehensions and inner lambdas belong to the function around them."""
    found = defaultdict[str, set[int]](set)
    for code, numbers in lines.items():
        found[name(str(Path(code.co_filename).relative_to(ROOT)), code)] |= numbers
    return {what: sorted(numbers) for what, numbers in sorted(found.items())}
