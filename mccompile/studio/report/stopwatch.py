"""Seconds of each step of each way."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mccompile.generate.run import OnStep


@dataclass(slots=True)
class Stopwatch:
    """Seconds of each step of the latest run of each way, beside whatever else is told the steps."""

    begun: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[float, ...]:
        """The seconds of each step of a way's latest run."""
        return tuple(self.seconds.get(name, ()))

    def watch(self, announce: Callable[[str], OnStep]) -> Callable[[str], OnStep]:
        """`announce`, with every step timed under the way's name."""

        def announced(name: str) -> OnStep:
            told = announce(name)
            own = self.seconds[re.sub(r"(: warm-up| \d+/\d+)$", "", name)] = []
            self.begun = time.perf_counter()

            def step(done: int, total: int) -> None:
                now = time.perf_counter()
                own.append(now - self.begun)
                self.begun = now
                told(done, total)

            return step

        return announced
