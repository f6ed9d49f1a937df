"""Errors of a run (MC06xx): a call that the compiled model cannot run in its present state."""

from __future__ import annotations

from mccompile import ir
from mccompile.diagnostics.failure import StatedFailure
from mccompile.language.walk import forecasts_of


class RunError(StatedFailure):
    """Base: a code, then place, cause and remedy."""

    code = "MC0600"


class NoClock(RunError):
    """A call outside any generation that a clock knows of, or from a pipeline that was not compiled."""

    code = "MC0601"

    def __init__(self) -> None:
        super().__init__(
            "the compiled transformer was called outside a generation of its pipeline: nothing tells the step",
            "run the pipeline that was compiled; compile another one of the same parts too, or give it the model's own "
            "transformer (`undo`); in a loop of your own set `compiled.clock` (docs/runtime.md)",
        )


class UnevenChunks(RunError):
    """The frames of a call do not divide into its chunks."""

    code = "MC0602"

    def __init__(self, frames: int, chunks: int) -> None:
        super().__init__(
            f"{frames} latent frames do not divide into {chunks} chunks of one length",
            "choose a number of frames that is a multiple of the chunk length",
        )


class UnknownStep(RunError):
    """The driver's timesteps are not those of the schedule it announced."""

    code = "MC0604"

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"the call's timestep is not in the announced schedule: {detail}",
            "announce the schedule that is run (the pipeline's scheduler), or set the clock by hand",
        )


class NotAPrefix(RunError):
    """The attention mask at this shape is not block-causal, as it was at the shapes of the compile."""

    code = "MC0605"

    def __init__(self, mask: str) -> None:
        super().__init__(
            f"mask `{mask}` is no prefix mask at this size: some token sees other keys than the first ones",
            "compile with a probe of this size, so that the dense mask is kept",
        )


class NoChunks(RunError):
    """A window of chunks, and an attention mask at this shape that has none."""

    code = "MC0616"

    def __init__(self) -> None:
        super().__init__(
            "the policy's window counts chunks, and the attention mask has none at this size: some tokens see keys "
            "that do not end with their own chunk",
            "take the `window` out of `cache { ... }`, or call the model at a size that it was compiled for",
        )


class WindowMoved(RunError):
    """Chunks entered or left, and the rows of a kept tensor cannot follow them."""

    code = "MC0607"

    def __init__(self, name: str, rows: str) -> None:
        super().__init__(
            f"the chunks of the call changed, and `{name}` does not hold their tokens in one piece (its rows: {rows})",
            "use a policy that computes every chunk (`compute`), or let forward keep video tokens side by side",
        )


class NoIncrement(RunError):
    """A policy keeps the increment of the integration step, and there is no such step to take over."""

    code = "MC0608"

    def __init__(self, policy: ir.PolicyIR, model: str, why: str) -> None:
        region = next((region for region in policy.regions if region.keep == "increment"), None)
        super().__init__(
            f"policy {policy.name} keeps the increment of the integration step of {model}: {why}",
            "use a policy that keeps the residual of layers, or a pipeline whose steps can be taken over "
            "(`integrate`, one guidance pass: docs/magi1.md)",
            span=None if region is None else region.at, marked="asks for it",
        )  # fmt: skip


class ConfigChanged(RunError):
    """The model's configuration is no longer the one that was captured."""

    code = "MC0606"

    def __init__(self, model: str, changes: str) -> None:
        super().__init__(
            f"the configuration of {model} changed since it was compiled: {changes}",
            "compile with the arguments that the generation uses, e.g. call={'causal_block_size': 5}",
        )


class OverBudget(RunError):
    """A request that would keep more than the policy's budget allows."""

    code = "MC0609"

    def __init__(self, policy: str, cache: ir.Cache, needed: int, branches: int) -> None:
        branch = "guidance branch keeps" if branches == 1 else f"{branches} guidance branches keep"
        super().__init__(
            f"policy `{policy}` may keep {cache.budget:,} bytes, and at this size the {branch} {needed:,}",
            "compile for this size (call=...), which allows a further measure, or raise `cache { budget: ... }`",
            span=cache.at, marked="the budget",
        )  # fmt: skip


class UnknownTimesteps(RunError):
    """A plan that needs the model's timesteps ahead, of a pipeline that gives others than its scheduler has."""

    code = "MC0611"

    def __init__(self, policy: str, why: str) -> None:
        super().__init__(
            f"policy `{policy}` needs the model's timesteps ahead of the run, and they are unknown: {why}",
            "compile with fold=False, so that the changes are measured in the run",
        )


class ModelChanged(RunError):
    """A model that is made of other parts than when it was captured."""

    code = "MC0612"

    def __init__(self, model: str, difference: str) -> None:
        super().__init__(
            f"{model} is no longer what was compiled: {difference}",
            "call `compiled.undo()` and compile it as it is now, or take the change back (weights may get new values)",
        )


UNTREATED = "disable the other cache, the offloading or the casting first, and remove hooks"


class ModelTreated(RunError):
    """A model whose forward is not that of its class, given to be compiled."""

    code = "MC0613"

    def __init__(self, model: str, where: str, treated: str, remedy: str = UNTREATED) -> None:
        super().__init__(
            f"{model} cannot be compiled as it stands: {where} has {treated}, which a captured graph would not run",
            remedy,
        )


class ModelRemembers(RunError):
    """A model whose forward depends on the calls before, given to be compiled."""

    code = "MC0615"

    def __init__(self, model: str, changes: str) -> None:
        super().__init__(
            f"{model} cannot be compiled as it stands: two equal calls of it are not alike, for {changes}",
            "disable the cache or the counter that was put into its class or its processors; let `forward` take what "
            "it carries over as an argument, and return it",
        )


class UnderAutocast(RunError):
    """A call inside `torch.autocast`."""

    code = "MC0614"

    def __init__(self, model: str, device: str) -> None:
        super().__init__(
            f"{model} was called under `torch.autocast({device!r})`, and the captured graphs have other casts than it",
            "leave autocast, and cast the pipeline before the compile: `pipe.to(torch.bfloat16)`",
        )


class NoForecast(RunError):
    """A forecast that has no value, or none for the rows that it would stand in for."""

    code = "MC0620"

    def __init__(self, policy: ir.PolicyIR, why: str) -> None:
        at = next((forecast.at for forecast in forecasts_of(policy)), None)
        super().__init__(
            f"policy {policy.name} cannot forecast kept results: {why}",
            "reuse the last kept result (`keep residual` alone), or decide per step",
            span=at, marked="the forecast",
        )  # fmt: skip


class TraceMalformed(RunError):
    """A file that is no trace of decisions. line: the first that is no event, 0 where no line could be read."""

    code = "MC0640"

    def __init__(self, path: str, line: int, why: str) -> None:
        super().__init__(
            f"`{path}`{f', line {line},' if line else ''} is no trace of decisions: {why}",
            "give a file that `mccompile generate --trace` or `--record` wrote",
        )
