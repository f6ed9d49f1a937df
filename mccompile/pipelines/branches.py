"""Tells the guidance branches of a step apart, where the pipeline does not name them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mccompile.runtime.errors import UnknownStep

MOST = 16  # calls of one step under one name; more, and the step does not move on


class BranchNames:
    """Names for the calls of each step of one request: no two calls of a step have the same one.

    A call whose fixed inputs (the prompt's, the image's) are those of an earlier call has that one's name; else calls
    are named by their order in the step. So a branch keeps its name where guidance is left out for some steps.
    """

    def __init__(self) -> None:
        self._row = -1
        self._made: set[str] = set()  # the names of this step
        self._fixed: dict[str, tuple[object, ...]] = {}  # by name, the inputs of its latest call: held, so none is lost

    def name(self, given: str, row: int, inputs: Mapping[str, object]) -> str:
        """The branch of a call. given: the pipeline's name for it, the same for all where it has none.

        Raises UnknownStep (MC0604) for so many calls at one step that the step cannot be the right one.
        """
        if row != self._row:
            self._row, self._made = row, set()
        tensors = tuple(v for v in inputs.values() if isinstance(v, torch.Tensor))
        name = self._known(given, tensors) or self._next(given)
        self._made.add(name)
        self._fixed[name] = tensors
        return name

    def _known(self, given: str, tensors: tuple[object, ...]) -> str | None:
        """The one name whose latest call shares the most inputs, if it shares any that others do not."""
        shares = {
            name: sum(any(a is b for b in held) for a in tensors)
            for name, held in self._fixed.items()
            if name not in self._made and _of(name, given)
        }
        if not shares:
            return None
        most = max(shares.values())
        best = [name for name, count in shares.items() if count == most]
        return best[0] if most and len(best) == 1 else None

    def _next(self, given: str) -> str:
        names = (given if n == 1 else f"{given}:{n}" for n in range(1, MOST + 1))
        free = next((n for n in names if n not in self._made), None)
        if free is None:
            raise UnknownStep(f"{MOST} calls of the step in row {self._row}, all named `{given}`")
        return free


def _of(name: str, given: str) -> bool:
    return name == given or name.startswith(f"{given}:")
