"""One node's part in a sampling: the model is captured at its first call, and runs under the policy from there on."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn

from mccompile import api
from mccompile.comfyui.clock import SamplerClock
from mccompile.comfyui.errors import NodeRefused
from mccompile.ir import PolicyIR
from mccompile.runtime.compiled import CompiledModel

LOG = logging.getLogger("mccompile")
BRANCHES = ("cond", "uncond")  # ComfyUI's numbers of the prompts of a call
SIZES = ((3, 6, 10), (4, 10, 14))  # of the two example calls, in patches: frames, rows, columns
OPTIONS, CONTROL = "transformer_options", "control"
HARMLESS = frozenset({  # entries of the options by which no node changes what the model computes
    "cond_or_uncond", "uuids", "sigmas", "sample_sigmas", "wrappers", "callbacks", "prefetch_dynamic_vbars",
    "total_blocks", "block_type", "block_index", "grid_sizes", "activations_shape",
})  # fmt: skip


class Executor(Protocol):
    """WrapperExecutor of ComfyUI: calls the next wrapper, or the model's own forward (`original`)."""

    original: Callable[..., object]
    class_obj: object
    wrappers: list[Callable[..., object]]
    idx: int

    def __call__(self, *args: object, **kwargs: object) -> object: ...


class TensorModel(nn.Module):
    """A video model of ComfyUI without its options: the same weights, called with tensors alone."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, more: Mapping[str, object]
    ) -> torch.Tensor:
        """x: latents [B, C, F, H, W]. timestep [B]. context: text [B, L, D]. more: further arguments by name."""
        result: torch.Tensor = self.diffusion_model(x, timestep, context, transformer_options={}, **more)
        return result


class NodeSession:
    """The wrappers that a node hangs on a model patcher: around a sampling, and around each call of the model."""

    def __init__(
        self, policy: PolicyIR, numbers: Mapping[str, float], backend: Literal["inductor", "eager"]
    ) -> None:
        self._policy, self._numbers, self._backend = policy, dict(numbers), backend
        self._clock = SamplerClock()
        self.compiled: CompiledModel | None = None

    def sample(self, executor: Executor, *args: object, **kwargs: object) -> object:
        """A whole sampling (WrappersMP.OUTER_SAMPLE)."""
        self._clock.begin()
        try:
            result = executor(*args, **kwargs)
            if self.compiled is not None:
                told = self.compiled.summary()
                LOG.info("%s", told)
                for warning in told.warnings:
                    LOG.warning(warning)
            return result
        finally:
            self._clock.end()
            if self.compiled is not None:
                self.compiled.clear()

    def call(self, executor: Executor, *args: object, **kwargs: object) -> object:
        """One call of the model (WrappersMP.DIFFUSION_MODEL), for all prompts that ComfyUI has put into it.

        Outside of a sampling the model itself runs. Raises NodeRefused (MC0725), and what `api.compile` raises.
        """
        if not self._clock.open:
            return executor(*args, **kwargs)
        call = _by_name(executor.original, args, kwargs)
        options = call.pop(OPTIONS, {})
        assert isinstance(options, Mapping)
        _check(executor, options, call)
        prompts = options.get("cond_or_uncond", [0])
        assert isinstance(prompts, list)
        parts = _split(call, len(prompts))
        model = self._model(executor.class_obj, parts[0])
        found = []
        for number, part in zip(prompts, parts, strict=True):
            branch = BRANCHES[number] if number < len(BRANCHES) else f"prompt {number}"
            self._clock.place(options, branch)
            with model.cache_context(branch):
                found.append(model(**_arguments(part)))
        return torch.cat(found)

    def _model(self, diffusion_model: object, call: Mapping[str, object]) -> CompiledModel:
        assert isinstance(diffusion_model, nn.Module)
        known = self.compiled
        if known is not None and known.model.diffusion_model is diffusion_model:
            return known
        plain = TensorModel(diffusion_model)
        patch = tuple(getattr(diffusion_model, "patch_size", (1, 2, 2)))
        probe, second = (_arguments(_example(call, size, patch)) for size in SIZES)
        batches = next(v for v in call.values() if isinstance(v, torch.Tensor)).size(0) > 1
        made = api.compile(
            plain, self._policy, probe=probe, second=second, clock=self._clock, backend=self._backend, batches=batches,
            **dict[str, Any](self._numbers),
        )
        for refusal in made.refusals:
            LOG.warning("%s: %s", refusal.site, refusal.reason)
        self.compiled = made
        return made


def _by_name(forward: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    """The arguments of a call by their names, those of `**kwargs` too, without those that are None."""
    signature = inspect.signature(forward)
    given = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name, {})
    return {name: value for name, value in given.items() if value is not None}


def _check(executor: Executor, options: Mapping[str, object], call: Mapping[str, object]) -> None:
    """Raises NodeRefused for a call in which others change what the blocks do: that would be left out silently."""
    others = executor.wrappers[executor.idx + 1 :]
    if others:
        raise NodeRefused(
            f"{len(others)} further wrappers of other nodes lie between it and the model, and would be left out",
            "put the policy node behind the other nodes, next to the sampler",
        )
    changed = [name for name, value in options.items() if name not in HARMLESS and not _nothing(value)]
    changed += [CONTROL] if CONTROL in call else []
    if changed:
        raise NodeRefused(
            f"other nodes change the model by `{'`, `'.join(changed)}`, which the captured one would leave out",
            "leave those nodes out, or the policy node",
        )


def _nothing(option: object) -> bool:
    return option is None or option is False or (isinstance(option, Mapping | Sequence) and not option)


def _arguments(call: Mapping[str, object]) -> dict[str, object]:
    """The arguments of `TensorModel` from those of the model."""
    own = ("x", "timestep", "context")
    return {**{n: call[n] for n in own}, "more": {n: v for n, v in call.items() if n not in own}}


def _split(call: Mapping[str, object], count: int) -> list[dict[str, object]]:
    """The call's part of each prompt: tensors lie one after the other in the batch; the rest is of all."""
    latents = call["x"]
    assert isinstance(latents, torch.Tensor)
    batch = len(latents)

    def part(value: object, i: int) -> object:
        of_prompts = isinstance(value, torch.Tensor) and value.dim() and len(value) == batch
        return value.chunk(count)[i] if of_prompts else value  # type: ignore[attr-defined]

    return [{name: part(value, i) for name, value in call.items()} for i in range(count)]


def _example(call: Mapping[str, object], size: tuple[int, int, int], patch: tuple[int, ...]) -> dict[str, object]:
    """The call of one sample at a small size. What is as large as the latents becomes noise of the small size."""
    latents = call["x"]
    assert isinstance(latents, torch.Tensor)
    places = latents.shape[2:]
    small = tuple(n * p for n, p in zip(size[-len(places) :], patch[-len(places) :], strict=True))
    generator = torch.Generator().manual_seed(0)

    def shrunk(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        one = value[:1]
        if one.dim() == latents.dim() and one.shape[2:] == places:
            return torch.randn(1, one.size(1), *small, generator=generator).to(one)
        return one

    return {name: shrunk(value) for name, value in call.items()}
