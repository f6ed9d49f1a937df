"""What a stage does, by its name. Stages of one process share what they captured and compiled."""

from __future__ import annotations

import subprocess
import sys

from mccompile.generate.placement import Placement
from mccompile.generate.run import OnStep
from mccompile.studio.bench import generations, ladder
from mccompile.studio.bench.gpu import published, steps
from mccompile.studio.bench.gpu.attention import attention
from mccompile.studio.bench.gpu.facts import facts
from mccompile.studio.bench.gpu.machine import Machine
from mccompile.studio.bench.gpu.peers import peers
from mccompile.studio.bench.gpu.telling import Earlier, TellRow
from mccompile.studio.bench.report import Row
from mccompile.studio.bench.rig import InTurn
from mccompile.studio.bench.timing import CallTimer

OF_EMBEDDED: generations.Policies = {"motioncache": ({"threshold": 0.2},), "teacache": ({"threshold": 0.1},)}
LINES = 15  # of pytest's summary


class Workshop:
    """The stages on one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._steps: InTurn | None = None  # of the 1.3B transformer

    def run(self, stage: str, earlier: Earlier, tell: TellRow) -> None:
        """Runs one stage. earlier: the rows of those before it. Raises KeyError for a name that is no stage's."""
        {
            "facts": lambda: facts(self._machine, tell),
            "attention": lambda: attention(self._machine, tell),
            "tests": lambda: self._tests(tell),
            "ladder": lambda: steps.ladder(self._machine, self._of_skyreels(tell), tell),
            "profile": lambda: steps.profiled(self._machine, self._of_skyreels(tell), tell),
            "motioncache": lambda: published.skyreels(
                earlier.get("ladder", ()), self._machine.scale.subject.chunks, tell
            ),
            "magi": lambda: self._magi(tell),
            "embedded": lambda: self._embedded(tell),
            "peers": lambda: self._peers(tell),
        }[stage]()

    def _of_skyreels(self, tell: TellRow) -> InTurn:
        if self._steps is None:
            self._steps = steps.prepared_steps(self._machine, self._machine.scale.subject, tell)
        return self._steps

    def _tests(self, tell: TellRow) -> None:
        """pytest in a process of its own; its last lines."""
        command = [sys.executable, "-m", "pytest", *self._machine.scale.tests]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in [x for x in ended.stdout.splitlines() if x.strip()][-LINES:]:
            tell({"line": line[:300]})
        tell({"name": "pytest", "code": ended.returncode})

    def _magi(self, tell: TellRow) -> None:
        self._steps = None  # its memory is needed
        found: list[Row] = []

        def both(row: Row) -> None:
            found.append(row)
            tell(row)

        made = steps.prepared_steps(self._machine, self._machine.scale.magi, tell)
        steps.ladder(self._machine, made, both)
        published.magi(found, tell)

    def _embedded(self, tell: TellRow) -> None:
        machine = self._machine
        place = Placement.of(machine.device.type, None, False)
        job = generations.load("embedded", place, machine.scale.generation)
        ways = generations.contenders(OF_EMBEDDED)
        made = ladder.report(job, ways, machine.backend, 1, CallTimer(machine.device), _unheard)
        for row in made.rows:
            tell(row)

    def _peers(self, tell: TellRow) -> None:
        self._steps = None  # its memory is needed
        peers(self._machine, tell)


def _unheard(name: str) -> OnStep:
    return lambda done, total: None
