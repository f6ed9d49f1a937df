"""Errors that stop a capture (MC04xx). Each names a place, a cause and a remedy."""

from __future__ import annotations

from mccompile.diagnostics.failure import InternalError, PlacedFailure


class CaptureError(PlacedFailure):
    """A model or a call that cannot be captured; `code` has a page in docs/errors."""


class ExportError(CaptureError):
    """torch.export cannot trace the model's forward."""

    code = "MC0401"
    title = "the model cannot be exported"


class ProbeError(CaptureError):
    """The two recorded calls do not describe one program at two sizes."""

    code = "MC0402"
    title = "the two probe calls do not fit together"


class NoBlocksError(CaptureError):
    """No list of transformer blocks lies on the way from the latent to the output."""

    code = "MC0403"
    title = "no transformer blocks found"


class IdentityError(CaptureError):
    """The exported graph does not compute what the eager model computes."""

    code = "MC0404"
    title = "the exported model differs from the eager model"


class CallError(CaptureError):
    """A call of a captured model that it was not captured for."""

    code = "MC0405"
    title = "the call does not fit the captured model"


def first_line(error: Exception) -> str:
    """What an error of torch says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class CaptureBug(InternalError):
    """A broken invariant of this package: an error of ours, not of the model."""
