"""Which step and which guidance branch a call of ComfyUI's samplers is.

A sampler tells with each call its whole schedule (`sample_sigmas`) and where in it the call is (`sigmas`). A call is at
the row of the call before, or at the next one. A sigma is compared with these two only, and never searched for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

from mccompile.comfyui.errors import NodeRefused
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Moment

NEAR = 1e-5  # samplers take a sigma through float32, and through the dtype of the latents
_requests = itertools.count()


class SamplerClock:
    """The clock of one node. `begin` and `end` enclose a sampling; between them `place` is told each call."""

    def __init__(self) -> None:
        self.open = False
        self._request, self._row = -1, -1
        self._grid: Grid | None = None
        self._seen: set[str] = set()

    def begin(self) -> None:
        """A sampling begins, with a schedule of its own."""
        self.open, self._request, self._row = True, next(_requests), -1
        self._grid, self._seen = None, set()

    def end(self) -> None:
        """It is over, whatever ended it."""
        self.open = False

    def place(self, options: Mapping[str, object], branch: str) -> None:
        """Says where the next call is: its `transformer_options`, and its guidance branch.

        Raises NodeRefused (MC0725) for calls that are at no step of the schedule, or a second call of a step.
        """
        if self._grid is None:
            self._grid = _grid(options)
        at, sigmas = _numbers(options.get("sigmas")), self._grid.sigmas
        sigma = at[0] if at else float("nan")
        if self._row >= 0 and branch not in self._seen and _same(sigma, sigmas[self._row]):
            self._seen.add(branch)
        elif self._row + 1 < self._grid.steps and _same(sigma, sigmas[self._row + 1]):
            self._row, self._seen = self._row + 1, {branch}
        else:
            raise NodeRefused(
                f"the sampler calls the model at sigma {sigma:g} for branch `{branch}` after step {self._row} of "
                f"{self._grid.steps}, which is neither that step nor the next one",
                "choose a sampler that calls the model once a step (euler, dpmpp_2m), without areas or "
                "context windows",
            )

    def moment(self, branch: str, inputs: Mapping[str, object], place: int | None = None) -> Moment:
        """The moment of the call that `place` has told."""
        assert self._grid is not None
        step = self._row
        following = (ChunkTime(0, "active", step + 1),) if step + 1 < self._grid.steps else None
        return Moment(
            self._request, step, branch, self._grid, (ChunkTime(0, "active", step),), 1, following, visited=True
        )


def _grid(options: Mapping[str, object]) -> Grid:
    """The steps of a schedule; its last sigma is where the last step ends."""
    found = _numbers(options.get("sample_sigmas"))
    if len(found) < 2 or not all(0 <= x <= 1 for x in found):
        what = "the sampler tells no schedule" if len(found) < 2 else f"its sigmas reach {max(found):g}, and not 1"
        raise NodeRefused(
            f"{what}: steps are known for samplers of flow models, which tell `sample_sigmas` from 1 to 0",
            "use a flow model, such as Wan, HunyuanVideo, LTX-Video or Cosmos 2, with a sampler of ComfyUI",
        )
    steps = found[:-1]
    return Grid(len(steps), tuple(1000 * x for x in steps), steps)


def _numbers(sigmas: object) -> tuple[float, ...]:
    return tuple(sigmas.flatten().tolist()) if isinstance(sigmas, torch.Tensor) else ()


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= NEAR * max(1.0, abs(other))
