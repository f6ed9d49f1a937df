"""Workers that each hold something costly, such as a loaded model, and do work with it; Ray schedules them.

Ray is an extra. What is needed of it stands in `Cluster`; tests put a cluster of their own in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from mccompile.diagnostics.failure import Failure
from mccompile.generate.errors import ClusterFailed, RayMissing

WorkerState = TypeVar("WorkerState")
TaskResult = TypeVar("TaskResult")
WorkerTask = Callable[..., Any]  # of a worker's state and what is given; it travels to the worker by name
_LEAST_LIVES = 3  # times that a worker is begun again before one question is given up


class WorkerDied(Exception):
    """A worker has gone; what it did is lost."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What stands for the result of work whose worker died. why: in a sentence."""

    why: str


@dataclass(frozen=True, slots=True)
class _Refused:
    """A refusal of ours in a worker, as text: exceptions with diagnostics do not travel."""

    text: str


class Cluster(Protocol):
    """What is needed of a scheduler of workers."""

    def size(self) -> int:
        """How many workers there is room for."""

    def begin(self, make: Callable[[], object]) -> Any:
        """A new worker; it makes its state before the first work."""

    def give(self, worker: Any, work: WorkerTask, given: tuple[object, ...]) -> Hashable:
        """Sends work; the token stands for its result."""

    def first(self, tokens: Sequence[Hashable]) -> Hashable:
        """Waits for one of them."""

    def result(self, token: Hashable) -> Any:
        """The result. Raises WorkerDied."""

    def end(self, worker: Any) -> None:
        """Ends a worker."""


class Workers(Generic[WorkerState]):
    """A number of workers of one kind. One that dies is begun again, and told all that `everywhere` told the others."""

    def __init__(self, cluster: Cluster, count: int, make: Callable[[], WorkerState]) -> None:
        self._cluster, self._make = cluster, make
        self._workers = [cluster.begin(make) for _ in range(count)]
        self._told: list[tuple[WorkerTask, tuple[object, ...]]] = []
        self.deaths = 0

    def __len__(self) -> int:
        return len(self._workers)

    def ask(self, number: int, work: WorkerTask, *given: object) -> Any:
        """The result of work on one worker; a worker that dies is begun again and asked again.

        Raises ClusterFailed (MC0747) for a refusal in the worker, and where it dies each time.
        """
        for _ in range(_LEAST_LIVES):
            try:
                return _plain(self._cluster.result(self._cluster.give(self._workers[number], work, given)))
            except WorkerDied:
                self._again(number)
        raise ClusterFailed(f"worker {number} died {_LEAST_LIVES} times")

    def everywhere(self, work: WorkerTask, *given: object) -> None:
        """The same work on every worker, and later on each that takes the place of one that died."""
        tokens = [self._cluster.give(worker, work, given) for worker in self._workers]
        died = []
        for number, token in enumerate(tokens):
            try:
                _plain(self._cluster.result(token))
            except WorkerDied:
                died.append(number)
        self._told.append((work, given))
        for number in died:
            self._again(number)

    def share(self, work: WorkerTask, items: Sequence[tuple[object, ...]]) -> Iterator[tuple[int, int, Any | Lost]]:
        """Every item on whichever worker is free: its place, the worker and the result, as they end.

        An item whose worker dies is lost, and the others go on.
        """
        free, waiting = list(range(len(self._workers))), list(range(len(items)))
        running: dict[Hashable, tuple[int, int]] = {}
        while waiting or running:
            while waiting and free:
                place, number = waiting.pop(0), free.pop(0)
                running[self._cluster.give(self._workers[number], work, items[place])] = place, number
            token = self._cluster.first(list(running))
            place, number = running.pop(token)
            try:
                found = _plain(self._cluster.result(token))
            except WorkerDied:
                self._again(number)
                found = Lost(f"its worker died, number {number}")
            free.append(number)
            free.sort()
            yield place, number, found

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            self._cluster.end(worker)

    def _again(self, number: int) -> None:
        """A new worker in the place of one that died."""
        self.deaths += 1
        self._workers[number] = self._cluster.begin(self._make)
        for work, given in self._told:
            _plain(self._cluster.result(self._cluster.give(self._workers[number], work, given)))


def _plain(result: Any) -> Any:
    if isinstance(result, _Refused):
        raise ClusterFailed(result.text)
    return result


def ray_cluster(device: str) -> Cluster:
    """Ray for work on a device. Raises RayMissing (MC0746)."""
    import torch

    return RayCluster(device.startswith("cuda"), torch.get_num_threads())


class RayCluster:
    """Ray, where RAY_ADDRESS says, or begun on this machine. A worker per GPU, or per CPU without one."""

    def __init__(self, gpu: bool, threads: int) -> None:
        """threads: of each worker, as many as this process computes with, so that sums are split alike.

        Raises RayMissing (MC0746).
        """
        try:
            import ray
        except ImportError:
            raise RayMissing from None
        self._ray: Any = ray
        self._gpu = gpu
        if not self._ray.is_initialized():
            self._ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
        options = {"num_cpus": 1, "num_gpus": 1 if gpu else 0, "max_restarts": 0}
        self._holder = self._ray.remote(**options)(_Holder)
        self._threads = threads

    def size(self) -> int:
        """GPUs of the cluster, or its CPUs."""
        return max(1, int(self._ray.cluster_resources().get("GPU" if self._gpu else "CPU", 1)))

    def begin(self, make: Callable[[], object]) -> Any:
        """A new actor."""
        return self._holder.remote(make, self._threads)

    def give(self, worker: Any, work: WorkerTask, given: tuple[object, ...]) -> Hashable:
        """A call of the actor."""
        return worker.do.remote(work, given)

    def first(self, tokens: Sequence[Hashable]) -> Hashable:
        """The one that is done first."""
        return self._ray.wait(list(tokens), num_returns=1)[0][0]

    def result(self, token: Hashable) -> Any:
        """Raises WorkerDied."""
        try:
            return self._ray.get(token)
        except self._ray.exceptions.RayActorError as error:
            raise WorkerDied from error

    def end(self, worker: Any) -> None:
        """Kills the actor."""
        self._ray.kill(worker)


class _Holder:
    """What runs in a worker's process."""

    def __init__(self, make: Callable[[], object], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._make = make
        self._state: object = None

    def do(self, work: WorkerTask, given: tuple[object, ...]) -> object:
        """The work's result; a refusal of ours as text."""
        try:
            if self._state is None:
                self._state = self._make()
            return work(self._state, *given)
        except Failure as error:
            return _Refused(str(error))
