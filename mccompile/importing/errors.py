"""Errors of importing (MC09xx): a configuration of another tool that gives no policy."""

from __future__ import annotations

from mccompile.diagnostics.diagnostic import nearest, words
from mccompile.diagnostics.failure import PlacedFailure


class ConfigError(PlacedFailure):
    """Base: a title, then place, cause and remedy."""

    code = "MC0900"
    title = ""


class ConfigUnreadable(ConfigError):
    """A file that is no configuration in a form that is read."""

    code = "MC0901"
    title = "cannot read this configuration"

    def __init__(self, place: str, cause: str) -> None:
        super().__init__(place, cause, "give a JSON or YAML file, a file of NAME=VALUE lines, or the Python call")


class ToolUnknown(ConfigError):
    """A configuration whose tool is not known from its keys, or that names a class or a method that is not known."""

    code = "MC0902"
    title = "it is not known what this configuration is of"

    def __init__(self, place: str, cause: str, name: str, known: tuple[str, ...]) -> None:
        near = nearest(name, known) if name else None
        remedy = f"did you mean `{near}`?" if near else f"name the tool with --tool, or use one of {words(known)}"
        super().__init__(place, cause, remedy)


class NoEquivalent(ConfigError):
    """A method that no policy can say."""

    code = "MC0903"
    title = "this method has no equivalent policy"

    def __init__(self, place: str, method: str, why: str, remedy: str) -> None:
        super().__init__(place, f"{method}: {why}", remedy)


class ValueRefused(ConfigError):
    """A value that the tool itself cannot take, or with which the method reuses nothing."""

    code = "MC0904"
    title = "the value of a key cannot be translated"

    def __init__(self, place: str, key: str, value: object, want: str) -> None:
        super().__init__(place, f"`{key}` is {value!r}", f"give {want}")


class KeysDenied(ConfigError):
    """Keys without an equivalent, where `--deny` refuses them."""

    code = "MC0905"
    title = "some keys have no equivalent"

    def __init__(self, place: str, keys: tuple[str, ...]) -> None:
        super().__init__(place, words(keys, "and"), "mend or remove these keys, or import without --deny")
