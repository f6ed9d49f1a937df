"""Where trials run: in this process, or on the workers of a cluster. Both give the same results for the same points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

from mccompile.backend.inductor import Progress
from mccompile.diagnostics.failure import Failure
from mccompile.generate.cluster import Lost, Workers
from mccompile.generate.compare import unannounced
from mccompile.generate.errors import ClusterFailed
from mccompile.generate.load import EMBEDDED, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.run import Settings
from mccompile.ir import Chunks, PolicyIR
from mccompile.policy.cells import Plan
from mccompile.studio.explore.extras import NO_EXTRAS, Extras
from mccompile.studio.explore.outcome import Outcome
from mccompile.studio.explore.rig import Announce, Reference, Rig, Work
from mccompile.studio.explore.schedule import CostTable
from mccompile.studio.explore.space import Point

# What a trial may end in without ending the search: our refusals, and what torch and diffusers raise for bad numbers,
# sizes and memory.
FAILURES = (Failure, RuntimeError, ValueError, ArithmeticError, OSError, TypeError)


@dataclass(frozen=True, slots=True)
class Broken:
    """A run that gave no outcome; why, in a sentence."""

    why: str


class TrialEngine(Protocol):
    """Runs points, each against vanilla, and tells what is known of a point before it runs."""

    def plans(self, point: Point) -> Mapping[str, Plan] | None:
        """See Rig.plans."""

    def least_flops(self, point: Point, prompt: str) -> float | None:
        """See Rig.least_flops."""

    def run_all(self, points: Sequence[Point], prompts: Sequence[str]) -> Iterator[tuple[int, Outcome | Broken]]:
        """Every point on every prompt; the place of each in `points` with its outcome, as they end."""


@dataclass(frozen=True, slots=True)
class Rigging:
    """How a rig is made, wherever it stands. kept: the folder of vanilla's videos."""

    model: str
    folder: Path
    place: Placement
    settings: Settings
    seed: int
    kept: Path
    backend: str
    extras: Extras = NO_EXTRAS

    def build(self, announce: Announce, progress: Progress | None) -> Rig:
        """Loads the pipeline and captures it."""
        loaded = announce("load the model")
        pipe = load_pipeline(self.folder, self.place)
        loaded(1, 1)
        judges = self.model == EMBEDDED
        return Rig(pipe, self.settings, self.seed, self.kept, self.backend, announce, progress, judges, self.extras)

    def build_alone(self) -> Rig:
        """A rig on the one device of a worker, which tells nobody of its progress."""
        return replace(self, place=self.place.of_worker()).build(unannounced, None)


class Local:
    """One rig in this process: point after point."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    def costs(self, prompts: Sequence[str], steps: int, chunks: Chunks) -> CostTable:
        """See Rig.costs."""
        return self.rig.costs(prompts, steps, chunks)

    def compile(self, policies: Mapping[str, PolicyIR], fixed: Mapping[str, Mapping[str, float]]) -> None:
        """See Rig.compile."""
        self.rig.compile(policies, fixed)

    def prepare(self, prompts: Sequence[str]) -> None:
        """Vanilla is made where it is asked for."""

    def plans(self, point: Point) -> Mapping[str, Plan] | None:
        return self.rig.plans(point)

    def least_flops(self, point: Point, prompt: str) -> float | None:
        return self.rig.least_flops(point, prompt)

    def run_all(self, points: Sequence[Point], prompts: Sequence[str]) -> Iterator[tuple[int, Outcome | Broken]]:
        for place, point in enumerate(points):
            yield place, _run(self.rig, point, prompts)

    def work(self) -> Work:
        """What the rig has done."""
        return self.rig.work

    def close(self) -> None:
        """Nothing is held."""


class Spreading:
    """A rig on every worker of a cluster. A worker that dies costs the trial that it ran, and is begun again."""

    def __init__(self, workers: Workers[Rig]) -> None:
        self._workers = workers
        self._knows: dict[str, int] = {}  # by variant: a worker that has run it

    def __len__(self) -> int:
        return len(self._workers)

    def costs(self, prompts: Sequence[str], steps: int, chunks: Chunks) -> CostTable:
        """See Rig.costs: every prompt on one worker."""
        found = self._workers.ask(0, _costs, prompts, steps, chunks)
        assert isinstance(found, CostTable)
        return found

    def compile(self, policies: Mapping[str, PolicyIR], fixed: Mapping[str, Mapping[str, float]]) -> None:
        """Compiles on every worker."""
        self._workers.everywhere(_compile, policies, fixed)

    def prepare(self, prompts: Sequence[str]) -> None:
        """Vanilla of each prompt, made by one worker and handed to all."""
        made: dict[int, Reference] = {}
        while len(made) < len(prompts):  # a worker that died has lost its prompt: another one makes it
            missing = [i for i in range(len(prompts)) if i not in made]
            before = self._workers.deaths
            for place, _, found in self._workers.share(_reference, [(prompts[i],) for i in missing]):
                if isinstance(found, Reference):
                    made[missing[place]] = found
            if self._workers.deaths > before + len(self._workers):
                raise ClusterFailed("every worker died while it made vanilla's videos")
        for place, reference in made.items():
            self._workers.everywhere(_hold, prompts[place], reference)

    def plans(self, point: Point) -> Mapping[str, Plan] | None:
        knows = self._knows.get(point.variant)
        return None if knows is None else cast("Mapping[str, Plan] | None", self._workers.ask(knows, _plans, point))

    def least_flops(self, point: Point, prompt: str) -> float | None:
        knows = self._knows.get(point.variant)
        return None if knows is None else cast("float | None", self._workers.ask(knows, _least_flops, point, prompt))

    def run_all(self, points: Sequence[Point], prompts: Sequence[str]) -> Iterator[tuple[int, Outcome | Broken]]:
        for place, number, found in self._workers.share(_run, [(point, prompts) for point in points]):
            if isinstance(found, Lost):
                yield place, Broken(found.why)
                continue
            assert isinstance(found, Outcome | Broken)
            if isinstance(found, Outcome):
                self._knows.setdefault(points[place].variant, number)
            yield place, found

    def work(self) -> Work:
        """What all rigs have done; those that died with their workers do not count."""
        whole = Work()
        for number in range(len(self._workers)):
            own = self._workers.ask(number, _work)
            assert isinstance(own, Work)
            whole = Work(*(a + b for a, b in zip(whole.counts(), own.counts(), strict=True)))
        return whole

    def close(self) -> None:
        """Ends the workers."""
        self._workers.close()


# ---- what runs in a worker ---------------------------------------------------------------------------------
def _costs(rig: Rig, prompts: Sequence[str], steps: int, chunks: Chunks) -> CostTable:
    return rig.costs(prompts, steps, chunks)


def _compile(rig: Rig, policies: Mapping[str, PolicyIR], fixed: Mapping[str, Mapping[str, float]]) -> None:
    rig.compile(policies, fixed)


def _reference(rig: Rig, prompt: str) -> Reference:
    return rig.reference(prompt)


def _hold(rig: Rig, prompt: str, reference: Reference) -> None:
    rig.hold(prompt, reference)


def _plans(rig: Rig, point: Point) -> Mapping[str, Plan] | None:
    return rig.plans(point)


def _least_flops(rig: Rig, point: Point, prompt: str) -> float | None:
    return rig.least_flops(point, prompt)


def _run(rig: Rig, point: Point, prompts: Sequence[str]) -> Outcome | Broken:
    try:
        return rig.run(point, prompts)
    except FAILURES as error:
        return Broken(str(error).strip() or type(error).__name__)


def _work(rig: Rig) -> Work:
    return rig.work
