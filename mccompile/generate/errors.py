"""Errors of driving a pipeline (MC07xx)."""

from __future__ import annotations

from mccompile.diagnostics.failure import StatedFailure


class GenerateError(StatedFailure):
    """Base: a code, then place, cause and remedy."""

    code = "MC0700"


class NotAPipeline(GenerateError):
    """An object that can be neither captured nor driven."""

    code = "MC0701"

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"{kind} is no pipeline with a `transformer`",
            "pass a diffusers pipeline, or a torch.nn.Module together with two example calls (probe=, second=)",
        )


class ProbeFailed(GenerateError):
    """The pipeline did not reach its transformer on a small example."""

    code = "MC0702"

    def __init__(self, kind: str, size: dict[str, int], error: Exception | None) -> None:
        cause = f"{type(error).__name__}: {error}" if error else "it never called its transformer"
        super().__init__(
            f"{kind} could not be asked for a small example ({size}): {cause}",
            "give further arguments of its call with call={...}, or pass the transformer and two example calls",
        )


class UnknownModel(GenerateError):
    """A model name or path that leads to no pipeline."""

    code = "MC0704"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"no pipeline at `{name}`: {why}",
            "give a folder with a model_index.json, or a name from `mccompile models`",
        )


class TraceUnreadable(GenerateError):
    """A recorded trace, or the settings beside it, that cannot be read."""

    code = "MC0710"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"cannot read the trace `{path}`: {why}",
            "give a .safetensors file of recorded calls with its settings in a .json file of the same name beside it",
        )


class TraceSettings(GenerateError):
    """A setting of a recorded trace that is missing or means nothing."""

    code = "MC0711"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the settings `{path}` do not describe a replay: {why}",
            "see docs/cli.md, `mccompile replay`, for the settings and what each may be",
        )


class TraceTensors(GenerateError):
    """Tensors of a recorded trace that are missing, or of sizes that do not fit each other."""

    code = "MC0712"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the tensors of `{path}` do not fit together: {why}",
            "see docs/cli.md, `mccompile replay`, for the tensors and their sizes; record the trace again",
        )


class OptionRefused(GenerateError):
    """An option that the pipeline, or this machine, cannot take."""

    code = "MC0705"

    def __init__(self, option: str, why: str, remedy: str) -> None:
        super().__init__(f"`{option}` cannot be used here: {why}", remedy)


class PipelineFailed(GenerateError):
    """The pipeline's own refusal of a call."""

    code = "MC0706"

    def __init__(self, kind: str, error: Exception) -> None:
        super().__init__(
            f"{kind} refused the call: {error}",
            "choose other sizes or options for this generation; the message is the pipeline's own",
        )


class OutputRefused(GenerateError):
    """A place for results that cannot be written."""

    code = "MC0707"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"cannot write `{path}`: {why}", "choose a folder, or a file, that can be written")
