"""A rig without a model: cost and quality are formulas of the threshold. Run as a script, it searches until killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mccompile.language.load import load_policy
from mccompile.policy.cells import Cell, Plan
from mccompile.policy.groups import ALL
from mccompile.policy.phases import Grid
from mccompile.studio.explore.engine import FAILURES, Broken
from mccompile.studio.explore.outcome import Outcome
from mccompile.studio.explore.search import Aim, search
from mccompile.studio.explore.space import Point, Space, ranges_of
from mccompile.studio.explore.study import Study

GRID = Grid(4, (4.0, 3.0, 2.0, 1.0), (1.0, 0.7, 0.5, 0.2))


def spaces(*names: str) -> dict[str, Space]:
    fixed = {"updates": 6.0, "floor": 0.6, "warmup": 2.0}
    return {n: Space({}, {n: ranges_of(load_policy(n), fixed, 4)}) for n in names or ("motioncache",)}


def study(folder: Path, sampler: str = "random", seed: int = 0, about: Mapping[str, object] | None = None) -> Study:
    return Study(folder, spaces(), about or {"seed": 0}, sampler, seed, 5)  # type: ignore[arg-type]


def outcome(threshold: float) -> Outcome:
    return Outcome(1.0 - 1.5 * threshold, 0.5, 1.0, 2.0, 50.0 - 40.0 * threshold, 20.0, 0.9, None)


class FakeRig:
    """Fails where it is told to; sleeps on the trial that is to be killed."""

    def __init__(self, fails: Sequence[int] = (), interrupts: int = -1, sleeps: int = -1, static: bool = False) -> None:
        self.points: list[Point] = []
        self._fails, self._interrupts, self._sleeps, self._static = fails, interrupts, sleeps, static

    def run_all(self, points: Sequence[Point], prompts: Sequence[str]) -> Iterator[tuple[int, Outcome | Broken]]:
        for place, point in enumerate(points):
            try:
                yield place, self.run(point, prompts)
            except FAILURES as error:
                yield place, Broken(str(error))

    def run(self, point: Point, _: Sequence[str]) -> Outcome:
        index = len(self.points)
        self.points.append(point)
        if index in self._fails:
            raise ValueError(f"run {index} went wrong")
        if index == self._interrupts:
            raise KeyboardInterrupt
        if index == self._sleeps:
            sys.stdout.write("sleeping\n")
            sys.stdout.flush()
            time.sleep(600)
        return outcome(point.values["threshold"])

    def plans(self, point: Point) -> dict[str, Plan] | None:
        """A plan of the tenths of the threshold, static or not."""
        if not self.points:
            return None
        reused = int(point.values["threshold"] * 10)
        last = "compute" if self._static else "dynamic"
        actions = ["reuse" if i <= reused else "compute" for i in range(4)]
        cells = tuple(Cell(i, 0, "compute" if i == 0 else a, (), None) for i, a in enumerate([*actions[:3], last]))
        return {ALL: Plan("motioncache", GRID, ("all",), (), cells, ())}

    def least_flops(self, point: Point, _: str) -> float | None:
        return outcome(point.values["threshold"]).flops if self.points else None


if __name__ == "__main__":
    search(study(Path(sys.argv[1])), FakeRig(sleeps=3), Aim(("p",), 8, "random", ()), lambda trial: None)
