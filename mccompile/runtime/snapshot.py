"""What one request keeps, as plain data and tensors, and back again: a run that was stopped goes on from there.

A snapshot is taken between two rows of calls. What can be made again from the inputs of the next call is left out:
plans, prelude values, what blocks make of the prompt, memory that is only written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mccompile.lowering.slots import KeptSlot, Late
from mccompile.policy.phases import ChunkState
from mccompile.runtime.clock import Moment
from mccompile.runtime.decision import OUTPUT
from mccompile.runtime.runner import Runner
from mccompile.runtime.staging import Staging
from mccompile.runtime.store import BranchStore, Course, History, Memory, Recent, States, Window

Cells = tuple[tuple[bool, ...], ...]
Pairs = tuple[tuple[int, int], ...]
StoredAt = tuple[str, ...]  # of a tensor; `_tensors` gives all places that there are

_STAGED = ("buffer", "chosen", "kept", "older", "passed", "outputs")
"""What lies in host memory where kept tensors do."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a branch: where it belongs, and how it lies in memory. host: beside the accelerator."""

    place: StoredAt
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    host: bool


@dataclass(frozen=True, slots=True)
class CourseFacts:
    """What has happened to one group of regions, without its tensors; see runtime/store.py for the names."""

    group: str
    phases: tuple[tuple[ChunkState, ...], ...]
    computed: Cells
    cleaned: Cells
    planned: Cells
    since: tuple[tuple[int, ...], ...]
    lost: tuple[tuple[int, int, str], ...]
    copies: Pairs
    seen: Pairs
    observed: Pairs


@dataclass(frozen=True, slots=True)
class BranchFacts:
    """A store without its tensors; see runtime/store.py for the names."""

    name: str
    row: int
    courses: tuple[CourseFacts, ...]
    places: tuple[tuple[int, bool], ...]
    tokens: int
    shapes: tuple[tuple[int, ...] | bool | int | float | str | None, ...]
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """Everything but the tensors. trusted: of the pairing of guidance branches (runtime/pair.py)."""

    trusted: bool
    branches: tuple[BranchFacts, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A request between two rows. tensors: in the order of the facts, contiguous, on the CPU."""

    facts: RequestFacts
    tensors: tuple[torch.Tensor, ...]


def size_of(runner: Runner, moment: Moment) -> int:
    """Bytes that a snapshot would take."""
    request = runner.requests.get(moment.request)
    return sum(store.nbytes() for store in request.branches.values()) if request is not None else 0


def take(runner: Runner, moment: Moment) -> Snapshot | None:
    """The request of a moment whose row is about to begin; None where there is no state to go on from.

    That is so before the first row, for policies that keep increments (they are the pipeline's part of a step), where a
    branch was run ahead of its call, where its last results were not finite, and where samples are run one by one.
    """
    request = runner.requests.get(moment.request)
    if request is None or not request.branches or request.foresight.pending is not None or request.others:
        return None
    if any(store.memory.increments or store.window is None for store in request.branches.values()):
        return None
    if not all(store.is_finite() for store in request.branches.values()):
        return None
    runner.engine.blocks.settle()
    branches, tensors = [], []
    for name, store in request.branches.items():
        found = list(_tensors(store))
        tensors += [tensor.detach().cpu().contiguous() for _, tensor in found]
        branches.append(_facts(name, store, tuple(_lying(place, tensor) for place, tensor in found)))
    return Snapshot(RequestFacts(request.foresight.trusted, tuple(branches)), tuple(tensors))


def restore(runner: Runner, moment: Moment, snapshot: Snapshot, device: torch.device) -> None:
    """The request as it was when the snapshot was taken. Raises ValueError where the snapshot is none of `take`."""
    left, staging, slots = iter(snapshot.tensors), runner.engine.blocks.staging, _slots(runner)
    stores = {}
    for facts in snapshot.facts.branches:
        store = _store(facts)
        for lying in facts.tensors:
            tensor = next(left, None)
            if tensor is None:
                raise ValueError("it has fewer tensors than it names")
            _put(store, slots, lying.place, _laid(tensor, lying, device, staging))
        stores[facts.name] = store
    runner.resume(moment, stores, snapshot.facts.trusted)


def _tensors(store: BranchStore) -> Iterator[tuple[StoredAt, torch.Tensor]]:
    for block, buffers in store.memory.buffers.items():
        for number, buffer in enumerate(buffers):
            yield ("buffer", str(block), str(number)), buffer
    for block, picks in store.memory.chosen.items():
        for number, chosen in enumerate(picks):
            yield ("chosen", str(block), str(number)), chosen
    for (region, stream), kept in store.memory.kept.items():
        yield ("kept", str(region), stream), kept
    for (region, stream), older in store.memory.older.items():
        for number, kept in enumerate(older):
            yield ("older", str(region), stream, str(number)), kept
    for (region, stream), passed in store.memory.passed.items():
        for number, value in enumerate(passed):
            yield ("passed", str(region), stream, str(number)), value
    if store.memory.outputs is not None:
        yield ("outputs",), store.memory.outputs
    for group, course in store.courses.items():
        for (sample, chunk, copy), recent in course.history.recent.items():
            yield ("recent", group, str(sample), str(chunk), str(int(copy))), torch.from_numpy(recent.steps)
        for slot, state in course.states.tensors.items():
            yield ("state", group, slot.name), state
        if course.states.selection is not None:
            yield ("selection", group), torch.from_numpy(np.ascontiguousarray(course.states.selection))


def _lying(place: StoredAt, tensor: torch.Tensor) -> StoredTensor:
    return StoredTensor(place, tuple(tensor.shape), tuple(tensor.stride()), tensor.device.type == "cpu")


def _facts(name: str, store: BranchStore, tensors: tuple[StoredTensor, ...]) -> BranchFacts:
    window = store.window
    assert window is not None
    courses = tuple(_course_facts(group, course) for group, course in store.courses.items())
    shapes: tuple[tuple[int, ...] | bool | int | float | str | None, ...] = window.shapes  # type: ignore[assignment]
    return BranchFacts(name, store.row, courses, window.places, window.tokens, shapes, tensors)


def _course_facts(group: str, course: Course) -> CourseFacts:
    history, states = course.history, course.states
    computed, cleaned, planned = (_rows(a) for a in (history.computed, history.cleaned, history.planned))
    return CourseFacts(
        group=group, phases=tuple(tuple(p) for p in history.phases),
        computed=computed, cleaned=cleaned, planned=planned,
        since=tuple(tuple(map(int, row)) for row in history.since),
        lost=tuple((b, g, why) for (b, g), why in history.lost.items()), copies=tuple(sorted(history.copies)),
        seen=tuple(sorted(states.seen)), observed=tuple(sorted(states.observed)),
    )  # fmt: skip


def _rows(cells: np.ndarray) -> Cells:
    return tuple(tuple(map(bool, row)) for row in cells)


def _store(facts: BranchFacts) -> BranchStore:
    courses = {course.group: _course(course) for course in facts.courses}
    return BranchStore(courses, Memory(), Window(facts.places, facts.tokens, facts.shapes), None, facts.row)


def _course(facts: CourseFacts) -> Course:
    history = History(
        phases=[list(p) for p in facts.phases],
        computed=np.array(facts.computed, bool),
        cleaned=np.array(facts.cleaned, bool),
        since=np.array(facts.since, np.int64),
        planned=np.array(facts.planned, bool),
        lost={(b, g): why for b, g, why in facts.lost},
        copies=set(facts.copies),
    )
    sizes = {(len(facts.phases), len(row)) for row in facts.phases}
    if {a.shape for a in (history.computed, history.cleaned, history.since, history.planned)} != sizes:
        raise ValueError("it has not one history for each chunk")
    return Course(history, States(seen=set(facts.seen), observed=set(facts.observed)))


def _laid(tensor: torch.Tensor, lying: StoredTensor, device: torch.device, staging: Staging | None) -> torch.Tensor:
    """The tensor in memory of its own that lies as it did: compiled graphs are made for strides."""
    reach = 1 + sum((n - 1) * s for n, s in zip(lying.shape, lying.stride, strict=True)) if tensor.numel() else 0
    fits = all(s >= 0 for s in lying.stride) and tensor.numel() <= reach <= 4 * tensor.numel()
    if tuple(tensor.shape) != lying.shape or not fits:
        raise ValueError(f"its tensor {lying.place} is {list(tensor.shape)}, and lies as {list(lying.stride)}")
    made = torch.empty_strided(lying.shape, lying.stride, dtype=tensor.dtype).copy_(tensor)
    if lying.host and staging is not None and lying.place[0] in _STAGED:
        return staging.home(made)
    return made.to(device)


def _slots(runner: Runner) -> dict[str, KeptSlot]:
    """The states that the decision and observe graphs keep, by name."""
    observe = runner.engine.observe
    found: list[KeptSlot] = []
    for decide in runner.engine.decides.values():
        if decide is not None:
            found += [s for s in (*decide.spec.inputs, *decide.spec.outputs) if isinstance(s, KeptSlot)]
    if observe is not None:
        found += [OUTPUT, *(Late(name) for name in observe.spec.signals)]
    return {slot.name: slot for slot in found}


def _put(store: BranchStore, slots: Mapping[str, KeptSlot], place: StoredAt, tensor: torch.Tensor) -> None:
    match place:
        case ("buffer" | "chosen" as which, block, number):
            blocks = store.memory.buffers if which == "buffer" else store.memory.chosen
            before = blocks.get(int(block), ())
            if len(before) != int(number):
                raise ValueError(f"what block {block} keeps is not in order")
            blocks[int(block)] = (*before, tensor)
        case ("kept", region, stream):
            store.memory.kept[int(region), stream] = tensor
        case ("older" | "passed" as which, region, stream, number):
            key = int(region), stream
            of = store.memory.older if which == "older" else store.memory.passed
            found = of.get(key, ())
            if len(found) != int(number):
                raise ValueError(f"earlier results of region {region} are not in order")
            of[key] = (*found, tensor)
        case ("outputs",):
            store.memory.outputs = tensor
        case ("recent", group, sample, chunk, copy) if group in store.courses:
            recent = Recent(tensor.cpu().numpy())
            store.courses[group].history.recent[int(sample), int(chunk), copy == "1"] = recent
        case ("state", group, name) if group in store.courses and name in slots:
            store.courses[group].states.tensors[slots[name]] = tensor
        case ("selection", group) if group in store.courses:
            store.courses[group].states.selection = tensor.cpu().numpy()
        case _:
            raise ValueError(f"it has no place {place}")
