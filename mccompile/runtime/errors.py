"""Errors of a run (MC06xx): a call that the compiled model cannot take as it stands."""

from __future__ import annotations


class RunError(Exception):
    """Base: a code, then place, cause and remedy."""

    code = "MC0600"

    def __init__(self, message: str, help_text: str) -> None:
        super().__init__(f"error[{self.code}]: {message}\nhelp: {help_text}")


class NoClock(RunError):
    """A call outside any generation that a clock knows of."""

    code = "MC0601"

    def __init__(self) -> None:
        super().__init__(
            "the compiled transformer was called outside a generation: nothing told it which step this is",
            "run it through the pipeline that was compiled, or set `compiled.clock` (see docs/runtime.md)",
        )


class UnevenChunks(RunError):
    """The frames of a call do not divide into its chunks."""

    code = "MC0602"

    def __init__(self, frames: int, chunks: int) -> None:
        super().__init__(
            f"{frames} latent frames do not divide into {chunks} chunks of one length",
            "choose a number of frames that is a multiple of the chunk length",
        )


class InputMismatch(RunError):
    """A call whose arguments are not those of the captured call."""

    code = "MC0603"

    def __init__(self, model: str, difference: str) -> None:
        super().__init__(
            f"this call of {model} differs from the captured one: {difference}",
            "call it as at compile time, or compile again with this kind of call",
        )


class UnknownStep(RunError):
    """The driver's timesteps are not those of the schedule it announced."""

    code = "MC0604"

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"the call's timestep is not in the announced schedule: {detail}",
            "announce the schedule that is run (the pipeline's scheduler), or set the clock by hand",
        )
