"""Errors of driving a pipeline (MC07xx): it cannot be captured, recorded, or called with these arguments."""

from __future__ import annotations

from mccompile.diagnostics.failure import StatedFailure


class PipelineError(StatedFailure):
    """Base: a code, then place, cause and remedy."""

    code = "MC0700"


class NotAPipeline(PipelineError):
    """An object that can be neither captured nor driven."""

    code = "MC0701"

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"{kind} is no pipeline with a `transformer`",
            "pass a diffusers pipeline, or a torch.nn.Module together with two example calls (probe=, second=)",
        )


class ProbeFailed(PipelineError):
    """The pipeline did not reach its transformer on a small example."""

    code = "MC0702"

    def __init__(self, kind: str, size: dict[str, int], error: Exception | None) -> None:
        cause = f"{type(error).__name__}: {error}" if error else "it never called its transformer"
        super().__init__(
            f"{kind} could not be asked for a small example ({size}): {cause}",
            "give further arguments of its call with call={...}, or pass the transformer and two example calls",
        )


class PipelineFailed(PipelineError):
    """The pipeline's own refusal of a call."""

    code = "MC0706"

    def __init__(self, kind: str, error: Exception) -> None:
        super().__init__(
            f"{kind} refused the call: {error}",
            "choose other sizes or options for this generation; the message is the pipeline's own",
        )


class CopyRefused(PipelineError):
    """A compiled pipeline that is to be copied or pickled."""

    code = "MC0708"

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"this {kind} is compiled, and what is compiled into a pipeline cannot be copied or pickled with it",
            "call `compiled.undo()`, copy the pipeline, and compile both",
        )


class NoSchedule(PipelineError):
    """A pipeline that says nowhere which step a call of its transformer is."""

    code = "MC0709"

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(
            f"{kind} does not say which step a call of its transformer is: {why}",
            "set the clock yourself (clock=..., docs/runtime.md)",
        )


class SecondTransformer(PipelineError):
    """A pipeline that runs another transformer beside the one that would be compiled."""

    code = "MC0713"

    def __init__(self, kind: str, names: str) -> None:
        super().__init__(
            f"{kind} runs `{names}` beside `transformer`, and those steps or branches would not be under the policy",
            "use a pipeline with one transformer, or compile a transformer alone and set its clock (docs/runtime.md)",
        )


class ProcessorsExchanged(PipelineError):
    """A pipeline that puts other attention processors into its transformer in every call."""

    code = "MC0728"

    def __init__(self, kind: str, module: str, processor: str) -> None:
        super().__init__(
            f"{kind} puts its own `{processor}` into `{module}` in every call, and a captured model has the code that "
            "was there when it was compiled",
            "use the pipeline without it (PAG: `pag_scale=0` in the call, and in call={...} at the compile), or the "
            "pipeline of the same model that has other guidance",
        )


class TooFewFrames(PipelineError):
    """A video that is shorter than one chunk."""

    code = "MC0717"

    def __init__(self, kind: str, frames: int, latent: int, chunk: int, least: int) -> None:
        super().__init__(
            f"{kind} cannot generate {frames} frames: they are {latent} latent, and a chunk has {chunk}",
            f"ask for at least {least} frames, or for a smaller causal block",
        )


class BudgetUncounted(PipelineError):
    """A byte budget for a model of which nobody can tell what it keeps without running it."""

    code = "MC0720"

    def __init__(self, policy: str, model: str) -> None:
        super().__init__(
            f"policy `{policy}` has a byte budget, and what {model} keeps cannot be counted ahead of a run: its blocks "
            "are its own code",
            "leave `budget` out, and say with `residual` and `device` how the policy keeps what it keeps",
        )
