"""MC0258, MC0259, MC0277, MC0278 and MC0289: tensors not known yet, gains of filters, blocks, maps of attention."""

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
        if name != "output":
            return (Help(f"`kept({name})` is that of the last computation"),)
        return (Help(f"`kept({name})` is that of the last computation, `before({name})` that of the step before"),)


@dataclass(frozen=True, slots=True)
class NoBlockResult(Diagnostic):
    """Something of a block that is no source."""

    code = "MC0277"
    title = "a block has no `{name}` to look at"
    label = "expected `residual`"
    name: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("`blocks[50%].residual` is what a block adds, `blocks[50%].attn.residual` what its attention"),)


@dataclass(frozen=True, slots=True)
class AnotherBlock(Diagnostic):
    """A second block that a policy looks at."""

    code = "MC0278"
    title = "a policy looks at one block"
    label = "it looks at `{first}` already"
    note = "what a block gave is kept for each token until it is compared, so one block is looked at and not all"
    first: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("`probe` is what the blocks before the kept ones add, and `output` what the model returned"),)


@dataclass(frozen=True, slots=True)
class InvalidGain(Diagnostic):
    """A gain that does not vary by frequency, or that consists of more than is known when it is applied."""

    code = "MC0259"
    title = "`filter` takes a gain by `frequency`"
    label = "{why}"
    why: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("low frequencies are kept by `filter(latent, gain = 1 / (1 + (frequency / 0.1) ^ 4))`"),)


ATTENTION_MAPS = ("attention_received", "attention_map", "attention_scores", "attention_weights")
"""What other systems call the weights by which each token attends to each other."""


@dataclass(frozen=True, slots=True)
class NoAttentionMap(Diagnostic):
    """The weights by which tokens attend to each other, which fused attention never has."""

    code = "MC0289"
    title = "`{name}` is no source: fused attention has no map"
    label = "each token against every other"
    note = "fused attention makes its weights piece by piece and keeps none; all of them cost more than reuse saves"
    name: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("how large a token's input is says as much: `magnitude(input, by = l2, over = token)`"),)
