"""Arguments of a forward that are no tensors of a fixed place: lists of varying length, and what a forward writes into.

Some autoregressive models are told the lengths of the chunks so far, a list that grows. They note in a dict how many
keys of earlier chunks they read. Such a list is one input. A number that a forward writes is a result of the call, and
it is put into the caller's own dict.

refuses when: a forward puts another tensor there, or writes a number that it has read (ExportError, MC0401). What it
writes into a tensor is left to rewritten.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.errors import CallError, ExportError
from mccompile.capture.own import mark_of

Arguments = dict[str, object]
PLAIN = (int, float, bool, str)
PlaceIn = tuple[object, ...]  # of one value: the argument's name, then keys and places


@dataclass(frozen=True, slots=True)
class GivenList:
    """A list of numbers of a call as one value, which torch does not take apart. kind: list or tuple."""

    numbers: tuple[int | float, ...]
    kind: type

    def given(self) -> object:
        """The list as the forward takes it."""
        return self.kind(self.numbers)


class _Absent:
    """Where a dict had no such key."""


ABSENT: Final = _Absent()


@dataclass(frozen=True, slots=True)
class _Mark:
    """A value that is no number: which one it is, and how often it was written to."""

    identity: int
    version: object


@dataclass(frozen=True, slots=True)
class Written:
    """A number that a forward writes into one of its arguments. before: what the recorded calls had there."""

    path: PlaceIn
    before: object

    def __str__(self) -> str:
        return ".".join(map(str, self.path))


def renewed(call: Mapping[str, object]) -> Arguments:
    """A call for the forward: in containers of its own, which it may write into, and with its lists as lists."""
    return {k: v.given() if isinstance(v, GivenList) else pytree.tree_map(lambda x: x, v) for k, v in call.items()}


def copied(call: Mapping[str, object]) -> Arguments:
    """The call in containers and tensors of its own; a tensor that it has twice stays one."""
    copies: dict[int, torch.Tensor] = {}

    def copy(value: object) -> object:
        return copies.setdefault(id(value), value.clone()) if isinstance(value, torch.Tensor) else value

    return {name: pytree.tree_map(copy, value) for name, value in call.items()}


def of_other_length(probe: Mapping[str, object], second: Mapping[str, object]) -> tuple[str, ...]:
    """The arguments that are lists of numbers of another length in each call."""
    pairs = ((name, _as_list(value), _as_list(second.get(name))) for name, value in probe.items())
    return tuple(name for name, a, b in pairs if a and b and len(a.numbers) != len(b.numbers))


def _as_list(value: object) -> GivenList | None:
    """A list or tuple of numbers as it is now; None for anything else."""
    if isinstance(value, list | tuple) and all(type(x) in (int, float) for x in value):
        return GivenList(tuple(value), type(value))
    return None


def as_one(call: Mapping[str, object], lists: Sequence[str]) -> Arguments:
    """The call with each of these lists as one value."""
    return {name: (_as_list(value) if name in lists else None) or value for name, value in call.items()}


def as_recorded(call: Mapping[str, object], written: Sequence[Written]) -> Arguments:
    """The call with what the recorded calls had in the places that the forward writes into."""
    made = renewed(call) if written else dict(call)
    for one in written:
        _put(made, one.path, one.before)
    return made


def give_back(call: Mapping[str, object], written: Sequence[Written], values: Sequence[object]) -> None:
    """Writes into a call's own arguments what the forward would have written there."""
    for one, value in zip(written, values, strict=True):
        _put(call, one.path, value)


def read_at(call: Mapping[str, object], written: Sequence[Written]) -> list[object]:
    """What stands in these places."""
    return [_inner(call, one.path[:-1])[one.path[-1]] for one in written]


def _inner(call: Mapping[str, object], path: PlaceIn) -> dict[object, object]:
    """The container that a path leads to. Raises CallError (MC0405) where a call has another one there."""
    found: object = call
    for key in path:
        try:
            found = found[key]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            place = ".".join(map(str, path))
            why = f"`{place}` is not there, and the forward writes into it"
            raise CallError("forward", why, "call it as it was recorded") from None
    return found  # type: ignore[return-value]


def _put(call: Mapping[str, object], path: PlaceIn, value: object) -> None:
    inside = _inner(call, path[:-1])
    if value is ABSENT:
        inside.pop(path[-1], None)
    else:
        inside[path[-1]] = value


def numbers_written(model: nn.Module, call: Mapping[str, object], tensors: bool = False) -> tuple[Written, ...]:
    """The numbers that a forward writes into the dicts and lists of a call. Runs the model, if the call has such.

    A model that does not run is left to capture. tensors: it may write into tensors of the call, in place. Raises
    ExportError (MC0401) for what else is no number, and for a number that is read.
    """
    if not any(isinstance(v, dict | list) and v for v in call.values()):
        return ()
    noted: list[PlaceIn] = []
    given = {name: _noting(value, (name,), noted) for name, value in copied(call).items()}
    before = dict(_leaves(given, ()))
    try:
        with torch.no_grad():
            model(**given)
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return ()
    after = dict(_leaves(given, ()))
    changed = [path for path in (*before, *after) if before.get(path, ABSENT) != after.get(path, ABSENT)]
    if tensors:
        changed = [path for path in changed if not _same_tensor(before.get(path), after.get(path))]
    written = tuple(Written(path, before.get(path, ABSENT)) for path in dict.fromkeys((*changed, *noted)))
    for one in written:
        if type(after.get(one.path)) not in PLAIN:
            _refuse(model, one, "")
    if written:
        _check_unread(model, call, written, after)
    return written


class _Noting(dict[object, object]):
    """Notes which of its keys are set."""

    def __init__(self, values: Mapping[object, object], path: PlaceIn, noted: list[PlaceIn]) -> None:
        super().__init__(values)
        self._path, self._noted = path, noted

    def __setitem__(self, key: object, value: object) -> None:
        self._noted.append((*self._path, key))
        super().__setitem__(key, value)

    def __copy__(self) -> dict[object, object]:
        return dict(self)


def _noting(value: object, path: PlaceIn, noted: list[PlaceIn]) -> object:
    """A value with its dicts in place of those that it had."""
    if type(value) is dict:
        return _Noting({k: _noting(v, (*path, k), noted) for k, v in value.items()}, path, noted)
    if type(value) in (list, tuple):
        made = [_noting(inner, (*path, place), noted) for place, inner in enumerate(value)]  # type: ignore[arg-type, var-annotated]
        return made if type(value) is list else tuple(made)
    return value


def _leaves(value: object, path: PlaceIn) -> Iterator[tuple[PlaceIn, object]]:
    """By path what changes when something is written there: numbers, and the versions of tensors."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif type(value) in (list, tuple):
        for place, inner in enumerate(value):  # type: ignore[arg-type]
            yield from _leaves(inner, (*path, place))
    else:
        version = mark_of(value) if isinstance(value, torch.Tensor) else None
        yield path, value if type(value) in PLAIN else _Mark(id(value), version)


def _same_tensor(one: object, two: object) -> bool:
    """Whether two marks are of one tensor, however often it was written to."""
    return isinstance(one, _Mark) and isinstance(two, _Mark) and one.identity == two.identity


def _refuse(model: nn.Module, one: Written, more: str) -> None:
    place, cause = f"{type(model).__name__}.forward", f"forward writes into its argument `{one}`{more}"
    raise ExportError(place, cause, "let forward return what it changes")


def _check_unread(
    model: nn.Module, call: Mapping[str, object], written: Sequence[Written], after: Mapping[PlaceIn, object]
) -> None:
    """Raises ExportError (MC0401) where the forward gives something else if other numbers stand there before.

    A caller that gives the same dict in each step has in it what the last step wrote.
    """
    fresh = [after[one.path] for one in written]
    others = [v + 1 if type(v) in (int, float) else v for v in fresh]  # type: ignore[operator]
    first: list[torch.Tensor] | None = None
    for before in ([one.before for one in written], fresh, others):
        given = copied(call)
        give_back(given, written, before)
        with torch.no_grad():
            made = [x for x in pytree.tree_leaves(model(**given)) if isinstance(x, torch.Tensor)]
        first = made if first is None else first
        same = len(made) == len(first) and all(map(torch.equal, made, first))
        if read_at(given, written) != fresh or not same:
            _refuse(model, written[0], ", and reads what stood there before")
