"""Errors of a generation (MC07xx): models, options, recorded traces, and places for results."""

from __future__ import annotations

from mccompile.pipelines.errors import PipelineError


class UnknownModel(PipelineError):
    """A model name or path that leads to no pipeline."""

    code = "MC0704"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"no pipeline at `{name}`: {why}",
            "give a folder with a model_index.json, or a name from `mccompile models`",
        )


class TraceUnreadable(PipelineError):
    """A recorded trace, or the settings beside it, that cannot be read."""

    code = "MC0710"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"cannot read the trace `{path}`: {why}",
            "give a .safetensors file of recorded calls with its settings in a .json file of the same name beside it",
        )


class TraceSettings(PipelineError):
    """A setting of a recorded trace that is missing or means nothing."""

    code = "MC0711"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the settings `{path}` do not describe a replay: {why}",
            "see docs/cli.md, `mccompile replay`, for the settings and what each may be",
        )


class TraceTensors(PipelineError):
    """Tensors of a recorded trace that are missing, or of sizes that do not fit each other."""

    code = "MC0712"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the tensors of `{path}` do not fit together: {why}",
            "see docs/cli.md, `mccompile replay`, for the tensors and their sizes; record the trace again",
        )


class OptionRefused(PipelineError):
    """An option that the pipeline, or this machine, cannot take."""

    code = "MC0705"

    def __init__(self, option: str, why: str, remedy: str) -> None:
        super().__init__(f"`{option}` cannot be used here: {why}", remedy)


class OutputRefused(PipelineError):
    """A place for results that cannot be written."""

    code = "MC0707"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"cannot write `{path}`: {why}", "choose a folder, or a file, that can be written")
