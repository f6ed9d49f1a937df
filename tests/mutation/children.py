"""Runs tests against mutants, each in a forked child of one process of pytest that has collected the tests once."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType

import pytest
from _pytest.main import pytest_runtestloop as loop

from tests.mutation.codes import ROOT, change, compiled, functions, install
from tests.mutation.operators import Mutant
from tests.mutation.rooms import SECONDS, Test, chosen

OPTIONS = ("-q", "-x", "-n0", "-s", "-p", "no:cacheprovider", "-p", "no:terminalreporter", "--basetemp=/tmp/mutants")
LONGEST = 12 * SECONDS
"""Of processor time. A child that needs more runs for ever, unless it needs as much without the change."""
LIMIT = 30
BROKEN = 9
"""The status of a child that could not run its tests."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """what: killed, slow (runs for ever), survived, or unreached. by: the test that failed. tried: how many ran."""

    key: str
    line: int
    what: str
    by: str
    tried: int
    seconds: float


def child_of(number: int, read: int) -> tuple[str, str]:
    """Waits for a child: its verdict, and the test that failed."""
    end, status = time.monotonic() + LIMIT * LONGEST, None
    while status is None:
        done, found = os.waitpid(number, os.WNOHANG)
        status = found if done else None
        if status is None and time.monotonic() > end:
            os.kill(number, signal.SIGKILL)
        if status is None:
            time.sleep(0.01)
    with os.fdopen(read) as pipe:
        by = pipe.read()
    if os.WIFSIGNALED(status):
        return ("slow" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "killed"), by
    if os.WEXITSTATUS(status) == BROKEN or (os.WEXITSTATUS(status) and not by):
        raise RuntimeError(f"a child ran no tests: {by}")
    return ("killed" if os.WEXITSTATUS(status) else "survived"), by


class Quick:
    """A plugin of pytest that makes hypothesis quick, and the same in every child."""

    def pytest_configure(self) -> None:
        """No example is kept for the next child, and none is made smaller."""
        from hypothesis import Phase, settings  # it must not be imported before pytest has begun

        quick = (Phase.explicit, Phase.generate)
        house = settings.get_profile("house")
        settings.register_profile("mutants", house, derandomize=True, database=None, phases=quick)
        settings.load_profile("mutants")


@dataclass(eq=False)
class Loop:
    """A plugin of pytest that runs no tests itself. It forks a child per mutant, until the time is over."""

    mutants: Iterable[Mutant]
    known: list[Test]
    place: Path
    seconds: float
    verdicts: list[Verdict] = field(default_factory=list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self.place.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + self.seconds
        for mutant in self.mutants:
            if time.monotonic() > until:
                break
            begun, made = resource.getrusage(resource.RUSAGE_CHILDREN), change(mutant)
            names = [name for name in chosen(mutant, made, self.known) if name in items]
            if not names:
                what, by = "unreached", ""
            elif made.lasting or not any(made.reached in test.reached for test in self.known):  # at import only
                what, by = alone(mutant, names)
            else:
                what, by = forked(session, [items[name] for name in names], mutant)
                if what == "slow" and forked(session, [items[name] for name in names], None)[0] == "slow":
                    what = "survived"  # the machine is slow, and nothing is known of the mutant
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = round(used.ru_utime + used.ru_stime - begun.ru_utime - begun.ru_stime, 2)
            verdict = Verdict(mutant.key, mutant.line, what, by, len(names), seconds)
            self.verdicts.append(verdict)
            with self.place.open("a") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")
        return True


def forked(session: pytest.Session, items: list[pytest.Item], mutant: Mutant | None) -> tuple[str, str]:
    """The verdict of a child that exchanges the code of functions, if it is told a mutant, and runs the items."""
    read, write = os.pipe()
    number = os.fork()
    if number:
        os.close(write)
        return child_of(number, read)
    status = BROKEN
    try:
        limited()
        if mutant is not None:
            install(change(mutant), functions(mutant.file))
        session.items[:] = items
        session.config.pluginmanager.register(Failing(write))
        with contextlib.suppress(session.Failed):  # after the first test that fails
            loop(session)
        status = int(session.testsfailed > 0)
    finally:
        if status == BROKEN:
            os.write(write, traceback.format_exc().encode())
        os._exit(status)


def limited() -> None:
    """Limits this process, and leads what it writes nowhere."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(LONGEST), int(LONGEST) + 5))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


@dataclass(eq=False)
class Failing:
    """A plugin that tells the first test that fails."""

    write: int

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self.write, report.nodeid.encode())

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:  # the changed module cannot even be imported
            os.write(self.write, report.nodeid.encode())


def alone(mutant: Mutant, names: list[str]) -> tuple[str, str]:
    """The verdict of a new process that imports the wrong module."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "tests.mutation", "alone", str(write), mutant.file, mutant.key, *names]
    started = subprocess.Popen(
        command, cwd=ROOT, pass_fds=(write,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(write)
    found = child_of(started.pid, read)
    started.returncode = 0  # it has been waited for
    return found


class Wrong(MetaPathFinder, SourceFileLoader):
    """Imports one module from its mutant."""

    def __init__(self, mutant: Mutant) -> None:
        module = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(module, str(ROOT / mutant.file))
        self._mutant = mutant

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return compiled(self._mutant)


def run_alone(write: int, mutant: Mutant, names: list[str]) -> int:
    """Runs tests in this process, which has not imported the product yet."""
    limited()
    sys.meta_path.insert(0, Wrong(mutant))
    return int(pytest.main([*OPTIONS, *names], plugins=[Failing(write), Quick()]))
