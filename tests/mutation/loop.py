"""The loop over mutants: a verdict for each of them, until all are tried or the time is over."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from _pytest.main import pytest_runtestloop as loop

from tests.mutation.alone import alone, few_files, import_others
from tests.mutation.children import BROKEN, LEAST, TIMES, Failing, Outcome, Quick, forked, options
from tests.mutation.codes import Change, change, install
from tests.mutation.operators import Mutant
from tests.mutation.order import Order
from tests.mutation.tried import SEEN
from tests.mutation.warm import Warm


@dataclass(frozen=True, slots=True)
class Verdict:
    """what: killed, slow (runs for ever), survived, or unreached. by: the test that failed. tried: how many ran."""

    key: str
    line: int
    what: str
    by: str
    tried: int
    seconds: float


@dataclass(eq=False)
class Judge:
    """order: of the room's tests. most: seconds of tests for each mutant. place: the file that gets the verdicts.

    pause: while this file exists, no mutant is begun. until: when the time is over.
    """

    order: Order
    most: float
    place: Path
    pause: Path
    until: float
    confirmed: set[str] = field(default_factory=set)

    def on_time(self) -> bool:
        while self.pause.exists():
            time.sleep(2)
        return time.monotonic() < self.until

    def judge(self, mutant: Mutant, made: Change, run: Callable[[Mutant | None, Change, list[str]], Outcome]) -> None:
        """Writes the verdict of one mutant. A test that fails without the mutant too is left out from then on."""
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        while True:
            names = self.order.chosen(mutant, made, self.most)
            what, by = run(mutant, made, names) if names else ("unreached", "")
            if what not in SEEN or by in self.confirmed:
                break
            if run(None, made, [name for name in names if name.startswith(by)])[0] == "survived":
                self.confirmed |= {by} & set(names)
                break
            if by not in names:
                what, by = "survived", ""  # no test could begin, with or without the mutant
                break
            self.order.without.add(by)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = round(used.ru_utime + used.ru_stime - begun.ru_utime - begun.ru_stime, 2)
        if by:
            self.order.killed(mutant, by)
        with self.place.open("a") as file:
            file.write(json.dumps(asdict(Verdict(mutant.key, mutant.line, what, by, len(names), seconds))) + "\n")


@dataclass(eq=False)
class Loop:
    """A plugin of pytest that runs no tests for their own sake. It forks a child per mutant.

    later: a file that gets the keys of those that only an import shows, and the names of the tests that there are.
    """

    mutants: Iterable[Mutant]
    judge: Judge
    basetemp: Path
    later: Path

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        order, later = self.judge.order, list[str]()
        self._items = {item.nodeid: item for item in session.items}
        order.tests = [test for test in order.tests if test.name in self._items]
        called = {what for test in order.tests for what in test.lines}
        self._session, self._warm = session, Warm(session, order)
        session.config.pluginmanager.register(self._warm)
        for mutant in self.mutants:
            if not self.judge.on_time():
                break
            made = change(mutant)
            if made.lasting or made.reached not in called:
                later.append(mutant.key)
            else:
                self.judge.judge(mutant, made, self._run)
        self.later.write_text(json.dumps([later, list(self._items)]))
        print(f"fail without a mutant: {sorted(order.without)}")  # noqa: T201
        return True

    def _run(self, mutant: Mutant | None, made: Change, names: list[str]) -> Outcome:
        order, warm, session = self.judge.order, self._warm, self._session
        warm.ready(names)
        wanted = [name for name in names if name not in order.without]
        costs = {test.name: order.cost(test, made) for test in order.tests if test.name in wanted}
        limits = {name: max(LEAST, TIMES * cost) for name, cost in costs.items()}

        def work(write: int) -> int:
            if mutant is not None:
                install(made, warm.functions.get(mutant.file, []))
                warm.forget(made.reached)
            session.items[:] = [self._items[name] for name in wanted]
            session.config.pluginmanager.register(Failing(write, limits))
            loop(session)
            return 0

        before = set(_entries(self.basetemp))
        try:
            return forked(work)
        finally:
            for path in set(_entries(self.basetemp)) - before:
                shutil.rmtree(path, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def run_all(todo: list[Mutant], judge: Judge) -> None:
    """In a child of its own those that a running process shows, and then the others, each in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        later, base = Path(folder) / "later.json", Path(folder) / "tests"
        files = sorted({test.name.partition("::")[0] for test in judge.order.tests})
        number = os.fork()
        if not number:
            status = BROKEN
            try:
                plugins = [Loop(todo, judge, base, later), Quick()]
                status = int(pytest.main([*options(str(base)), *files], plugins=plugins))
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, status = os.waitpid(number, 0)
        if not later.exists():
            raise SystemExit(f"the tests could not be run: {os.waitstatus_to_exitcode(status)}")
        wanted, there = map(set, json.loads(later.read_text()))
    judge.order.tests = [test for test in judge.order.tests if test.name in there]
    if wanted:
        import_others()
    for mutant in todo:
        if mutant.key in wanted and judge.on_time():
            judge.judge(mutant, change(mutant), lambda one, _, names: alone(one, few_files(names)))
