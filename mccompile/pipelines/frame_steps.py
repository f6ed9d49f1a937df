"""The scheduler's step of diffusion forcing: once for all frames that are at the same step, and not once for each.

SkyReels-V2's pipeline makes a copy of its scheduler for every latent frame, and steps one frame after the other. On a
GPU these are some 30 launches for each frame, and the host waits for uploads of single numbers. While a generation
runs, the copies are of a class of ours: the first frame of a run that steps alike computes the whole run, with the
numbers of the schedule on the host, and the others take their part. The operations, their order and their results are
those of UniPC in diffusers (Zhao et al., arXiv 2302.04867). Where a copy cannot know that it may do so, it takes
the stock step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler

FRAMES = 2  # the axis of latents [B, C, frames, H, W]
MOST = 2  # of solver_order: above that, sums of differences would be made in another order
_HOOK = "__deepcopy__"


@dataclass(frozen=True, slots=True)
class Alike:
    """How many frames from one on step alike now, and the place of their step in the schedule."""

    count: int
    place: int


@dataclass(frozen=True, slots=True)
class _Coefficients:
    """Numbers of one update, 0-dimensional float32 on the host, in the words of diffusers' code."""

    of_sample: torch.Tensor  # sigma_t / sigma_s0
    of_output: torch.Tensor  # alpha_t * h_phi_1
    of_rest: torch.Tensor  # alpha_t * B_h
    ratios: tuple[torch.Tensor, ...]  # rk of earlier outputs
    weights: torch.Tensor  # rhos [order]


@dataclass(slots=True)
class _Ready:
    """What was computed for a frame before its turn.

    noise, latents: the tensors that it was computed of. version: of the latents when its turn comes, if nobody else
    writes to them.
    """

    noise: torch.Tensor
    latents: torch.Tensor
    versions: tuple[int, int]
    output: torch.Tensor
    corrected: torch.Tensor | None
    result: torch.Tensor
    order: int


def refused(scheduler: Any) -> str:
    """Why a scheduler keeps its own step; "" where frames may step together."""
    if type(scheduler) is not UniPCMultistepScheduler:
        return f"{type(scheduler).__name__} is not UniPCMultistepScheduler"
    config = scheduler.config
    if scheduler.solver_p is not None:
        return "it has a predictor of its own"
    wanted = {"solver_type": "bh2", "prediction_type": "flow_prediction", "predict_x0": True, "thresholding": False}
    for name, value in wanted.items():
        if config[name] != value:
            return f"its {name} is {config[name]}"
    return f"its solver_order is above {MOST}" if config.solver_order > MOST else ""


class FrameScheduler(UniPCMultistepScheduler):
    """The copy of a pipeline's scheduler for one frame."""

    _steps: FrameSteps
    _frame: int

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        """As the stock step."""
        found = None if return_dict else self._steps.step(self, model_output, timestep, sample)
        if found is None:
            return UniPCMultistepScheduler.step(self, model_output, timestep, sample, return_dict)
        return (found,)


@dataclass(slots=True)
class FrameSteps:
    """Steps the frames of one pipeline's generations. alike: says of a frame which ones step alike with it now."""

    alike: Callable[[int], Alike | None]
    _scheduler: Any = None  # whose copies are ours now
    _copies: list[FrameScheduler] = field(default_factory=list)
    _ready: dict[int, _Ready] = field(default_factory=dict)
    _begun: bool = False
    _known: dict[tuple[int, int, bool], _Coefficients] = field(default_factory=dict)

    def begin(self, scheduler: Any) -> None:
        """From now on, until `end`, copies of the scheduler step together, if they may."""
        self.end()
        if not refused(scheduler):
            self._scheduler = scheduler
            vars(scheduler)[_HOOK] = self._copied

    def end(self) -> None:
        """Copies of the scheduler are plain ones again."""
        if self._scheduler is not None:
            vars(self._scheduler).pop(_HOOK, None)
        self._scheduler = None
        self._copies, self._ready, self._known, self._begun = [], {}, {}, False

    def _copied(self, memo: dict[int, object]) -> object:
        """What `deepcopy` of the scheduler gives: the pipeline makes one copy for each frame, in order."""
        hook = vars(self._scheduler).pop(_HOOK)
        try:
            made = copy.deepcopy(self._scheduler, memo)
        finally:
            vars(self._scheduler)[_HOOK] = hook
        if self._begun:  # of the next window
            self._copies, self._ready, self._known, self._begun = [], {}, {}, False
        made.__class__ = FrameScheduler
        made._steps, made._frame = self, len(self._copies)
        self._copies.append(made)
        return made

    def step(
        self, own: FrameScheduler, output: torch.Tensor, timestep: object, sample: torch.Tensor
    ) -> torch.Tensor | None:
        """The sample of the frame after its step; None where the stock step must be taken."""
        self._begun = True
        frame = own._frame
        noise, latents = output._base, sample._base
        if noise is None or latents is None or frame >= len(self._copies) or self._copies[frame] is not own:
            return None
        if frame not in self._ready:
            self._prepare(frame, noise, output, latents, sample)
        ready = self._ready.pop(frame, None)
        if ready is None or not _is_of(ready, noise, latents):
            self._ready.clear()
            return None
        for later in self._ready.values():  # the pipeline writes this frame's result before the next turn
            later.versions = later.versions[0], later.versions[1] + 1
        _commit(own, ready, timestep, sample)
        return ready.result

    def _prepare(
        self, frame: int, noise: torch.Tensor, output: torch.Tensor, latents: torch.Tensor, sample: torch.Tensor
    ) -> None:
        """Computes the run of frames that begins with `frame`, if there is one."""
        self._ready.clear()
        alike = self.alike(frame)
        slot = _place_in(noise, output)
        if alike is None or slot is None or _place_in(latents, sample) != frame or sample.dtype != torch.float32:
            return
        count = min(alike.count, noise.size(FRAMES) - slot, latents.size(FRAMES) - frame, len(self._copies) - frame)
        run = self._copies[frame : frame + count]
        while _state(run[-1]) != _state(run[0]):
            run.pop()
        if run[0].step_index is None:
            for one in run:
                one._step_index = alike.place
        outputs, samples = noise.narrow(FRAMES, slot, len(run)), latents.narrow(FRAMES, frame, len(run))
        converted, corrected, results, order = self._together(run, outputs, samples)
        for i, one in enumerate(run):
            self._ready[one._frame] = _Ready(
                noise, latents, (noise._version, latents._version), converted.select(FRAMES, i),
                None if corrected is None else corrected.select(FRAMES, i), results.select(FRAMES, i), order,
            )  # fmt: skip

    def _together(
        self, run: Sequence[FrameScheduler], outputs: torch.Tensor, samples: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, int]:
        """UniPCMultistepScheduler.step on a run of frames: converted outputs, corrected samples, results, order."""
        own = run[0]
        place, earlier = own.step_index, [m for m in own.model_outputs if m is not None]
        converted = samples - own.sigmas[place] * outputs
        corrected = None
        if place > 0 and place - 1 not in own.disable_corrector and own.last_sample is not None:
            known = self._coefficients(own, place, own.this_order, corrects=True)
            last, first = stacked([s.last_sample for s in run]), stacked([s.model_outputs[-1] for s in run])
            differences = [stacked([s.model_outputs[-1 - i] for s in run]) for i in range(1, own.this_order)]
            corrected = _updated(known, last, first, differences, converted - first)
            samples = corrected
        left = len(own.timesteps) - place if own.config.lower_order_final else own.config.solver_order
        order = min(own.config.solver_order, left, own.lower_order_nums + 1)
        known = self._coefficients(own, place, order, corrects=False)
        before = [stacked([s.model_outputs[-i] for s in run]) for i in range(1, order)] if earlier else []
        return converted, corrected, _updated(known, samples, converted, before, None), order

    def _coefficients(self, own: FrameScheduler, place: int, order: int, corrects: bool) -> _Coefficients:
        key = place, order, corrects
        if key not in self._known:
            self._known[key] = _coefficients(own, place, order, corrects)
        return self._known[key]


def _coefficients(own: FrameScheduler, place: int, order: int, corrects: bool) -> _Coefficients:
    """The numbers of multistep_uni_p_bh_update, or of multistep_uni_c_bh_update, at a step."""
    target, origin = (place, place - 1) if corrects else (place + 1, place)

    def level(at: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        alpha, sigma = own._sigma_to_alpha_sigma_t(own.sigmas[at])
        return alpha, sigma, torch.log(alpha) - torch.log(sigma)

    alpha_t, sigma_t, lambda_t = level(target)
    _, sigma_s0, lambda_s0 = level(origin)
    h = lambda_t - lambda_s0
    ratios = [(level(origin - i)[2] - lambda_s0) / h for i in range(1, order)]
    rks = torch.stack([*ratios, torch.ones(())])
    hh = -h
    h_phi_1 = torch.expm1(hh)
    h_phi_k, factorial = h_phi_1 / hh - 1, 1
    b_h = torch.expm1(hh)
    rows, right = [], []
    for i in range(1, order + 1):
        rows.append(torch.pow(rks, i - 1))
        right.append(h_phi_k * factorial / b_h)
        factorial *= i + 1
        h_phi_k = h_phi_k / hh - 1 / factorial
    simple = order == 1 if corrects else order <= 2
    weights = torch.full((order,), 0.5) if simple else torch.linalg.solve(torch.stack(rows), torch.stack(right))
    return _Coefficients(sigma_t / sigma_s0, alpha_t * h_phi_1, alpha_t * b_h, tuple(ratios), weights)


def _updated(
    known: _Coefficients, x: torch.Tensor, m0: torch.Tensor, earlier: Sequence[torch.Tensor],
    newest: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """The sample after an update. earlier: outputs before m0. newest: the difference that a corrector adds."""
    base = known.of_sample * x - known.of_output * m0
    weighted = [known.weights[i] * ((m - m0) / rk) for i, (m, rk) in enumerate(zip(earlier, known.ratios, strict=True))]
    rest: torch.Tensor | int = weighted[0] if weighted else 0
    if newest is not None:
        rest = rest + known.weights[-1] * newest
    return (base - known.of_rest * rest).to(x.dtype)


def _state(own: FrameScheduler) -> tuple[object, ...]:
    """What the next step depends on beside tensors."""
    order = vars(own).get("this_order")
    return own.step_index, own.lower_order_nums, order, own.last_sample is None, len(own.timesteps)


def _commit(own: FrameScheduler, ready: _Ready, timestep: object, sample: torch.Tensor) -> None:
    """Leaves the frame's scheduler as the stock step would."""
    own.model_outputs = [*own.model_outputs[1:], ready.output]
    own.timestep_list = [*own.timestep_list[1:], timestep]
    own.this_order = ready.order
    own.last_sample = sample if ready.corrected is None else ready.corrected
    own.lower_order_nums = min(own.lower_order_nums + 1, own.config.solver_order)
    own._step_index += 1


def _is_of(ready: _Ready, noise: torch.Tensor, latents: torch.Tensor) -> bool:
    """Whether a result was computed of these tensors as they are now."""
    same = ready.noise is noise and ready.latents is latents
    return same and ready.versions == (noise._version, latents._version)


def _place_in(whole: torch.Tensor, frame: torch.Tensor) -> int | None:
    """Which frame of `whole` a tensor is a view of; None where it is none."""
    if whole.dim() != 5 or frame.dim() != 4 or not whole.stride(FRAMES):
        return None
    place = (frame.storage_offset() - whole.storage_offset()) // whole.stride(FRAMES)
    if not 0 <= place < whole.size(FRAMES):
        return None
    wanted = whole.select(FRAMES, place)
    fits = (wanted.shape, wanted.stride()) == (frame.shape, frame.stride())
    return place if fits and wanted.storage_offset() == frame.storage_offset() else None


def stacked(frames: Sequence[torch.Tensor]) -> torch.Tensor:
    """Frames [B, C, H, W] as [B, C, n, H, W], without a copy where they are neighbours already."""
    whole = frames[0]._base
    if whole is not None and all(f._base is whole for f in frames):
        places = [_place_in(whole, f) for f in frames]
        first = places[0]
        if first is not None and places == list(range(first, first + len(frames))):
            return whole.narrow(FRAMES, first, len(frames))
    return torch.stack(tuple(frames), FRAMES)
