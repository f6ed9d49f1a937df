"""Runs tests against mutants, each in a forked child of one process of pytest that has collected the tests once."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import pytest

LEAST, TIMES = 3.0, 12.0
"""A test that needs TIMES its time and LEAST seconds of processor time runs for ever, unless it does so unchanged."""
WHOLE = 90
"""Seconds of processor time of a whole child, where no test's limit ends it."""
LIMIT = 15 * WHOLE
FAILED, SLOW, BROKEN = 1, 7, 9
"""How a child ends: a test failed, one ran for ever, or it could not run its tests."""
Outcome: TypeAlias = tuple[str, str]
"""`killed`, `slow` or `survived`, and the test that failed."""


def options(place: str) -> tuple[str, ...]:
    """place: a folder of its own for temporary files."""
    quiet = ("-q", "-n0", "-s", "-p", "no:cacheprovider", "-p", "no:terminalreporter")
    return (*quiet, "--assert=plain", "--tb=no", f"--basetemp={place}")


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
class Failing:
    """A plugin that tells the first test that fails, and ends a test that runs for ever.

    limits: seconds of processor time, by the names of tests.
    """

    write: int
    limits: Mapping[str, float]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        def over(number: int, frame: object) -> None:
            os.write(self.write, nodeid.encode())
            os._exit(SLOW)

        signal.signal(signal.SIGPROF, over)
        signal.setitimer(signal.ITIMER_PROF, self.limits.get(nodeid, WHOLE))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self.write, report.nodeid.encode())
            os._exit(FAILED)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:  # the changed module cannot even be imported
            os.write(self.write, report.nodeid.encode())
            os._exit(FAILED)


def forked(work: Callable[[int], int]) -> Outcome:
    """What became of a child that does some work.

    work: is told where to write the name of the test that fails, and returns 0 where none does.
    """
    read, write = os.pipe()
    number = os.fork()
    if number:
        os.close(write)
        return _waited(number, read)
    status = BROKEN
    try:
        _limited()
        status = work(write)
    finally:
        if status == BROKEN:
            os.write(write, traceback.format_exc().encode())
        os._exit(status)


def _waited(number: int, read: int) -> Outcome:
    end, status = time.monotonic() + LIMIT, None
    while status is None:
        done, found = os.waitpid(number, os.WNOHANG)
        status = found if done else None
        if status is None and time.monotonic() > end:
            os.kill(number, signal.SIGKILL)
        if status is None:
            time.sleep(0.005)
    os.set_blocking(read, False)  # a process that the child has left behind may hold the other end
    by = ""
    with contextlib.suppress(BlockingIOError):
        by = os.read(read, 1 << 16).decode()
    os.close(read)
    if os.WIFSIGNALED(status):
        return ("slow" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "killed"), by
    if os.WEXITSTATUS(status) == BROKEN:
        raise RuntimeError(f"a child ran no tests: {by}")
    return {0: "survived", SLOW: "slow"}.get(os.WEXITSTATUS(status), "killed"), by


def _limited() -> None:
    """Limits this process, and leads what it writes nowhere."""
    resource.setrlimit(resource.RLIMIT_CPU, (WHOLE, WHOLE + 5))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
