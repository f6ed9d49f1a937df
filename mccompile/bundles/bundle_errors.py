"""Errors of bundles (MC081x): a file is not a bundle, or it is for another machine, torch or model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mccompile.diagnostics.failure import StatedFailure


class BundleError(StatedFailure):
    """Base: a code, then place, cause and remedy."""

    code = "MC0800"


class UnreadableBundle(BundleError):
    """A file that is missing, cut off, or something else than a bundle."""

    code = "MC0811"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is no readable bundle: {reason}",
            "copy the file again, or make it with `mccompile compile MODEL POLICY -o BUNDLE`",
        )


class AlteredBundle(BundleError):
    """A part of a bundle is not the one that was written."""

    code = "MC0812"

    def __init__(self, path: Path, entry: str, reason: str) -> None:
        super().__init__(
            f"`{entry}` in {path} {reason}",
            "bundles hold compiled code and are not edited: compile the model again",
        )


class NewerBundle(BundleError):
    """A bundle in a format that this version does not know."""

    code = "MC0813"

    def __init__(self, path: Path, have: int, known: int) -> None:
        super().__init__(
            f"{path} has format {have}, this mccompile reads up to {known}",
            "install the mccompile that wrote it, or compile the model again",
        )


class OlderBundle(BundleError):
    """A bundle in a format that this version no longer reads."""

    code = "MC0817"

    def __init__(self, path: Path, have: int, known: int) -> None:
        super().__init__(
            f"{path} has the old format {have}, this mccompile reads format {known}",
            "compile the model again: `mccompile compile MODEL POLICY -o BUNDLE`",
        )


class ForeignBundle(BundleError):
    """A bundle compiled for other versions or another machine; differences are (what, made for, here)."""

    code = "MC0814"

    def __init__(self, path: Path, differences: Sequence[tuple[str, str, str]]) -> None:
        lines = "".join(f"\n  {what}: made for {made}, here {here}" for what, made, here in differences)
        super().__init__(f"{path} was not compiled for this machine{lines}", "compile the model again here")


class WrongModel(BundleError):
    """The model is not the one that the bundle was compiled from."""

    code = "MC0815"

    def __init__(self, path: Path, model: str, differences: Sequence[str]) -> None:
        lines = "".join(f"\n  {d}" for d in differences)
        super().__init__(
            f"{path} was compiled from another model than {model}{lines}",
            "load the model that the bundle names, or compile this one",
        )


class UnbundledRole(BundleError):
    """A graph that has no file form, so that a bundle of it would have to compile again."""

    code = "MC0816"

    def __init__(self, role: object, reason: str) -> None:
        super().__init__(
            f"the graph `{role}` cannot be stored: {reason}",
            "use the compiled model in the process that compiled it",
        )


class SeveralTransformers(BundleError):
    """A bundle for a pipeline whose steps are run by several transformers."""

    code = "MC0818"

    def __init__(self, kind: str, slots: Sequence[str]) -> None:
        names = " and ".join(f"`{slot}`" for slot in slots)
        super().__init__(
            f"a bundle holds one transformer, and the steps of {kind} are run by {names}",
            "compile it in the process that runs it (`mccompile generate --model`); packages are kept on this machine",
        )
