"""Errors of the page (MC076x): its libraries, its address, its requests, and the process that runs the model."""

from __future__ import annotations

from mccompile.diagnostics.failure import StatedFailure


class ServeUnavailable(StatedFailure):
    """The libraries of `mccompile serve` are not installed."""

    code = "MC0761"

    def __init__(self, why: str) -> None:
        super().__init__(f"no page can be served here: {why}", "install them with `pip install 'mccompile[serve]'`")


class AddressRefused(StatedFailure):
    """An address that the page cannot be served at."""

    code = "MC0762"

    def __init__(self, address: str, why: str) -> None:
        super().__init__(
            f"no page can be served at {address}: {why}",
            "choose another one with --port or --host; `--port 0` takes a free port",
        )


class RequestRefused(StatedFailure):
    """What a page asked the server for, and does not get. status: of HTTP."""

    code = "MC0763"

    def __init__(self, status: int, why: str, remedy: str) -> None:
        super().__init__(f"the page's request is refused: {why}", remedy)
        self.status = status


class WorkerEnded(StatedFailure):
    """The process that runs the model is gone."""

    code = "MC0764"

    def __init__(self, exit_status: int | None) -> None:
        said = "it was killed" if exit_status is not None and exit_status < 0 else f"exit status {exit_status}"
        super().__init__(
            f"the process that runs the model ended in the middle of a run: {said}",
            "run it again, which starts the process anew; if memory is short, choose a smaller video. "
            "What the process said last stands in the terminal of `mccompile serve`",
        )
