"""Errors of a generation (MC07xx): models, options, recorded traces, and places for results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


class OutputSaved(PipelineError):
    """Results that could not be written to their place, and lie in another one. saved: the other place by the place."""

    code = "MC0715"

    def __init__(self, saved: Mapping[str, str], why: str) -> None:
        path, place = next(iter(saved.items()))
        super().__init__(
            f"cannot write `{path}`: {why}; it was saved as `{place}`",
            "move it to where it belongs, or make room and run again",
            causes=tuple(f"`{path}` was saved as `{place}`" for path, place in list(saved.items())[1:]),
        )


class NotFinite(PipelineError):
    """A generation whose video is not made of numbers."""

    code = "MC0716"

    def __init__(self, kind: str, share: float) -> None:
        super().__init__(
            f"the video of {kind} is not made of numbers: {share:.1%} of its values are infinite or not a number",
            "use another --dtype, or a smaller --guidance-scale; if `--policy compute` gives a video, report a bug",
        )


class NothingToResume(PipelineError):
    """A folder without a run that was stopped, or with one that cannot be read."""

    code = "MC0718"

    def __init__(self, folder: str, why: str) -> None:
        super().__init__(
            f"no run can go on from `{folder}`: {why}",
            "give the folder of `mccompile generate --record` whose run was stopped, or run it anew",
        )


class RunDiffers(PipelineError):
    """A run that would go on another way than it was begun."""

    code = "MC0719"

    def __init__(self, folder: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"the run in `{folder}` would go on another way than it was begun: {differences[0]}",
            "go on with it as it was begun, or run it anew",
            causes=tuple(differences[1:]),
        )


class PromptsUnusable(PipelineError):
    """A file of prompts that cannot be used."""

    code = "MC0741"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the prompts of `{path}` cannot be used: {why}",
            "give a text file with one prompt a line, at least two: the last quarter is held out of the search",
        )


class RayMissing(PipelineError):
    """`--engine ray` where Ray is not installed."""

    code = "MC0746"

    def __init__(self) -> None:
        super().__init__("`--engine ray` needs the package `ray`, which is missing", "pip install 'mccompile[ray]'")


class ClusterFailed(PipelineError):
    """Workers of a cluster that cannot do what they are there for."""

    code = "MC0747"

    def __init__(self, why: str) -> None:
        super().__init__(
            "the workers of the cluster cannot do their work",
            "see what the worker says, and run it without `--engine ray` to see it here",
            causes=tuple(line for line in why.splitlines() if line.strip()),
        )
