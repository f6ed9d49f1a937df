"""A run on disk while it is made, so that a run that was stopped goes on: its calls, and from time to time its state.

The pipeline of a resumed run is called from its beginning. Calls before the last kept state give what was kept of them.
So latents, scheduler and random numbers come out as they did. Then the state is put back, and the rest is computed.
Every file is there whole or not at all. A state is written where that takes at most a twentieth of the time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mccompile.backend.records import read_record, write_record
from mccompile.backend.role import Value
from mccompile.bundles.identity import Environment, ModelIdentity
from mccompile.generate.errors import NothingToResume, RunDiffers
from mccompile.generate.places import put, reason
from mccompile.runtime.clock import Moment
from mccompile.runtime.runner import Runner
from mccompile.runtime.snapshot import RequestFacts, Snapshot, restore, size_of, take
from mccompile.runtime.trace import Event

FORMAT = 3
FOLDER, BEGUN = "progress", "begun.json"  # in the folder of --record
SHARE = 0.05  # of the time of a run that is spent on writing states
SPEED = 200 * 2**20  # bytes per second, until a state was written
MALFORMED = (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError)


@dataclass(frozen=True, slots=True)
class Begun:
    """A run as it was begun. words: of the command line. folder: where it was given. policy: the IR, with its values.

    models: of each transformer of the pipeline. threads: of torch, on which sums depend.
    """

    format: int
    words: tuple[str, ...]
    folder: str
    made_on: Environment
    models: tuple[ModelIdentity, ...]
    policy: str
    parameters: tuple[tuple[str, float], ...]
    threads: int

    def differences(self, now: Begun) -> list[str]:
        """Why a run that was begun so would not go on the same way now."""
        found = [f"{what} is {there}, and was {here}" for what, here, there in self.made_on.differences(now.made_on)]
        if len(self.models) == len(now.models):
            found += [d for one, other in zip(self.models, now.models, strict=True) for d in one.differences(other)]
        else:
            found.append(f"the pipeline has {len(now.models)} transformers, and had {len(self.models)}")
        found += ["the policy is another"] if self.policy != now.policy else []
        found += ["its parameters are others"] if self.parameters != now.parameters else []
        if self.threads != now.threads:
            found.append(f"torch has {now.threads} threads, and had {self.threads}")
        return found


@dataclass(frozen=True, slots=True)
class KeptCall:
    """A call that was made. outputs: how many tensors. masked: whether the mask of computed tokens was kept."""

    row: int
    branch: str
    outputs: int
    masked: bool
    events: tuple[Event, ...]


class Journal:
    """The calls of one run. replayable: whether what the model gives is all that the pipeline asks it for.

    stopped: why nothing is kept any more, "" while it is. known: how many calls are not computed again.
    """

    def __init__(
        self, record: Path, begun: Begun, replayable: bool = True, resume: bool = False,
        said: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        """Begins the run in the folder `record`, or goes on with it. said: is told when no more can be kept.

        Raises NothingToResume (MC0718), RunDiffers (MC0719), OSError.
        """
        self.folder, self.stopped, self.known = record / FOLDER, "", 0
        self._replayable, self._done, self._row, self._said = replayable, 0, -1, said
        self._written, self._cost = time.perf_counter(), 0.0
        self._state: Snapshot | None = None
        if resume:
            before = read_begun(record)
            differences = before.differences(begun)
            if differences:
                raise RunDiffers(str(record), differences)
            self.known, self._state = self._latest() if replayable else (0, None)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            text = json.dumps(write_record(begun), indent=1)
            put(self.folder / BEGUN, lambda path: path.write_text(text, encoding="utf-8"))

    def call(self, runner: Runner, inputs: Mapping[str, Value], moment: Moment) -> tuple[Value, ...]:
        """The flat outputs of a call: as they were kept, or else made by the runner, and kept."""
        number, self._done = self._done, self._done + 1
        device = next(v.device for v in inputs.values() if isinstance(v, torch.Tensor))
        if number < self.known:
            return self._again(number, runner, inputs, moment, device)
        if self._state is not None:
            try:
                restore(runner, moment, self._state, device)
            except MALFORMED as error:
                raise NothingToResume(str(self.folder), f"its state cannot be read: {error}") from error
            self._state = None
        elif moment.row != self._row:
            self._keep_state(number, runner, moment)
        self._row, events = moment.row, len(runner.events)
        made = runner.call(inputs, moment)
        self._keep_call(number, runner, moment, runner.events[events:], made)
        return made

    def kept(self, number: int) -> tuple[KeptCall, tuple[torch.Tensor, ...]]:
        """A call that was kept, its outputs, and last its mask if that was kept. Raises NothingToResume (MC0718)."""
        try:
            return _read_call(self.folder / _call_name(number))
        except MALFORMED as error:
            raise NothingToResume(str(self.folder), f"call {number} cannot be read: {error}") from error

    def end(self) -> None:
        """The run is over, and its results are written: what was kept to go on with it is removed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _again(
        self, number: int, runner: Runner, inputs: Mapping[str, Value], moment: Moment, device: torch.device
    ) -> tuple[Value, ...]:
        call, tensors = self.kept(number)
        if (call.row, call.branch) != (moment.row, moment.branch):
            raise RunDiffers(str(self.folder.parent), [f"call {number} is of row {moment.row}, and was of {call.row}"])
        runner.made_before(inputs, moment)
        runner.events.extend(replace(event, request=str(moment.request)) for event in call.events)
        if runner.masks is not None and call.masked:
            runner.masks.append(tensors[-1].numpy())
        self._row = moment.row
        return tuple(t.to(device) for t in tensors[: call.outputs])

    def _keep_call(
        self, number: int, runner: Runner, moment: Moment, events: list[Event], made: tuple[Value, ...]
    ) -> None:
        tensors = {str(i): v.detach().cpu().contiguous() for i, v in enumerate(made) if isinstance(v, torch.Tensor)}
        if len(tensors) < len(made):  # a number among the outputs: nothing of the kind is known
            self._replayable = False
            return
        if runner.masks:
            tensors["mask"] = torch.from_numpy(np.ascontiguousarray(runner.masks[-1]))
        call = KeptCall(moment.row, moment.branch, len(made), bool(runner.masks), tuple(events))
        self._write(_call_name(number), tensors, "call", call)

    def _keep_state(self, number: int, runner: Runner, moment: Moment) -> None:
        """Keeps the state before a call, if that was not done just now."""
        size, now = size_of(runner, moment), time.perf_counter()
        cost = self._cost or size / SPEED
        if self.stopped or not self._replayable or not size or (now - self._written) * SHARE < cost:
            return
        if shutil.disk_usage(self.folder).free < 2 * size:
            return
        snapshot = take(runner, moment)
        if snapshot is None:
            return
        tensors = {f"{i:06}": tensor for i, tensor in enumerate(snapshot.tensors)}
        self._write(_state_name(number), tensors, "facts", snapshot.facts)
        for old in self.folder.glob("state-*.safetensors"):
            if old.name != _state_name(number) and not self.stopped:
                old.unlink(missing_ok=True)
        self._written = time.perf_counter()
        self._cost = self._written - now

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor], key: str, facts: object) -> None:
        about = {key: json.dumps(write_record(facts))}
        if self.stopped:
            return
        try:
            put(self.folder / name, lambda path: save_file(dict(tensors), path, about))
        except (OSError, SafetensorError) as error:
            self.stopped = reason(error) if isinstance(error, OSError) else str(error)
            self._said(f"cannot write {self.folder / name}: {self.stopped}; the run goes on and is not kept any more")

    def _latest(self) -> tuple[int, Snapshot | None]:
        """The last state that is whole, with the number of the calls before it, all of which are there."""
        for path in sorted(self.folder.glob("state-*.safetensors"), reverse=True):
            number = path.stem.removeprefix("state-")
            if number.isdecimal() and all((self.folder / _call_name(i)).is_file() for i in range(int(number))):
                try:
                    return int(number), _read_state(path)
                except MALFORMED:
                    continue
        return 0, None


def read_begun(record: Path) -> Begun:
    """How the run in the folder of `--record` was begun. Raises NothingToResume (MC0718)."""
    path = record / FOLDER / BEGUN
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"{BEGUN} is not of format {FORMAT}")
        return read_record(Begun, found)
    except FileNotFoundError:
        raise NothingToResume(str(record), "no run was stopped there") from None
    except MALFORMED as error:
        raise NothingToResume(str(record), f"{BEGUN} cannot be read: {error!s:.200}") from error


def _call_name(number: int) -> str:
    return f"call-{number:06}.safetensors"


def _state_name(number: int) -> str:
    return f"state-{number:06}.safetensors"


def _read(path: Path, key: str) -> tuple[object, tuple[torch.Tensor, ...]]:
    with safe_open(path, "pt") as file:
        tensors = tuple(file.get_tensor(name) for name in sorted(file.keys()))  # "mask" comes after all numbers
        return json.loads((file.metadata() or {})[key]), tensors


def _read_call(path: Path) -> tuple[KeptCall, tuple[torch.Tensor, ...]]:
    facts, tensors = _read(path, "call")
    call = read_record(KeptCall, facts)  # type: ignore[arg-type]
    if len(tensors) != call.outputs + call.masked:
        raise ValueError(f"it has {len(tensors)} tensors in place of {call.outputs + call.masked}")
    return call, tensors


def _read_state(path: Path) -> Snapshot:
    facts, tensors = _read(path, "facts")
    return Snapshot(read_record(RequestFacts, facts), tensors)  # type: ignore[arg-type]
