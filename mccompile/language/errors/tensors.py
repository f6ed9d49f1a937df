"""MC0258 and MC0259: tensors that are not known yet, and gains of filters."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Help


@dataclass(frozen=True, slots=True)
class NotYetKnown(Diagnostic):
    """A tensor of the running step that the model makes at the end of the step."""

    code = "MC0258"
    title = "`{name}` is not known before the step has run"
    label = "the one of the running step"
    name: str

    def helps(self) -> tuple[Help, ...]:
        name = self.name
        return (Help(f"`kept({name})` is that of the last computation, `before({name})` that of the step before"),)


@dataclass(frozen=True, slots=True)
class InvalidGain(Diagnostic):
    """A gain that does not vary by frequency, or that consists of more than is known when it is applied."""

    code = "MC0259"
    title = "`filter` takes a gain by `frequency`"
    label = "{why}"
    why: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("low frequencies are kept by `filter(latent, gain = 1 / (1 + (frequency / 0.1) ^ 4))`"),)
