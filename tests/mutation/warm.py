"""What one process of pytest keeps for its children: fixtures that many tests share, and what functions remember.

Tests are run once in this process before a child runs them: the first one of each file, and those that fill what is
kept. A child whose mutant changes code that filling such a thing calls throws it away and fills it anew.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FunctionType

import pytest
from _pytest.fixtures import pytest_fixture_setup as set_up

from tests.mutation.codes import ROOT
from tests.mutation.order import Order
from tests.mutation.reached import Cached, cache_name, caches, fixture_name, shared_fixtures

HELD = ("tests.", "mccompile.policy.", "mccompile.lowering.", "mccompile.runtime.", "mccompile.pipelines.")
"""Whose memory may hold what a mutant changes. Rooms below do not call these, and the backend's is of the machine."""


@dataclass(eq=False)
class Warm:
    """A plugin of pytest. ran: the tests that have run here. functions: by their file."""

    session: pytest.Session
    order: Order
    ran: set[str] = field(default_factory=set)
    functions: dict[str, list[FunctionType]] = field(default_factory=dict)
    _values: dict[str, object] = field(default_factory=dict)
    _whole: dict[str, tuple[pytest.FixtureDef[object], pytest.FixtureRequest]] = field(default_factory=dict)
    _caches: list[Cached] = field(default_factory=list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> object | None:
        """Keeps what a fixture of a module returns: pytest would make it again for the next test of that module."""
        what = fixture_name(fixturedef, request.param_index)
        if fixturedef.scope == "session":
            self._whole[what] = fixturedef, request
        if fixturedef.scope != "module" or inspect.isgeneratorfunction(fixturedef.func):
            return None
        if what not in self._values:
            self._values[what] = set_up(fixturedef, request)
        fixturedef.cached_result = (self._values[what], fixturedef.cache_key(request), None)
        return self._values[what]

    def __post_init__(self) -> None:
        self._items = {item.nodeid: item for item in self.session.items}
        self._remembering = {item.__module__.replace(".", "/") for item in caches("tests.")}

    def ready(self, names: Iterable[str]) -> None:
        """Runs tests that fill something here. One that fails is left out from now on."""
        before = len(self.ran)
        for name in names:
            if self._fills(name):
                self._run(self._items[name])
        if len(self.ran) > before or not self.functions:
            self._look()

    def _fills(self, name: str) -> bool:
        if name in self.ran:
            return False
        file = name.partition(".py::")[0]
        if file in self._remembering or not any(one.startswith(f"{file}.py") for one in self.ran):
            return True
        return not {*self._values, *self._whole}.issuperset(shared_fixtures(self._items[name]))

    def _run(self, item: pytest.Item) -> None:
        begun, session = time.process_time(), self.session
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=session)  # only what the session has stays
        self.order.seconds[item.nodeid] = time.process_time() - begun
        self.ran.add(item.nodeid)
        if self.session.testsfailed:
            self.order.without.add(item.nodeid)
            self.session.testsfailed = 0

    def _look(self) -> None:
        """Finds functions and caches, then hides all objects from the collector, whose marks would copy every page."""
        gc.unfreeze()
        found, product = defaultdict[str, list[FunctionType]](list), f"{ROOT}/mccompile/"
        for item in gc.get_objects():
            if type(item) is FunctionType and item.__code__.co_filename.startswith(product):
                found[item.__code__.co_filename].append(item)
        self.functions = {file.removeprefix(f"{ROOT}/"): some for file, some in found.items()}
        self._caches = caches(*HELD)
        gc.freeze()

    def forget(self, reached: str) -> None:
        """In a child: throws away what a function may have made. reached: its name."""
        kept = self.order.kept

        def made(what: str) -> bool:
            return what not in kept or reached in kept[what].functions

        self._values = {what: value for what, value in self._values.items() if not made(what)}
        for what, (definition, request) in self._whole.items():
            if made(what):
                definition.finish(request)  # type: ignore[arg-type]
        for cache in self._caches:
            if made(cache_name(cache)):
                cache.cache_clear()
