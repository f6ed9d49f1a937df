"""Checks of the sections `chunks`, `cache` and `branches`, and their defaults."""

from __future__ import annotations

from typing import Literal, cast, get_args

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.builtins import BRANCHES
from mccompile.language.errors import layers, names, values
from mccompile.language.expressions import Elaborator
from mccompile.language.types import Poison

Section = Literal["chunks", "cache"]
OPTION_WORDS: dict[tuple[Section, str], tuple[str, ...]] = {
    ("chunks", "frames"): ("model",),
    ("chunks", "pending"): ("skip", "compute"),
    ("chunks", "finished"): ("keep", "refresh", "compute"),
    ("cache", "dtype"): get_args(ir.KeptDtype),
    ("cache", "residual"): get_args(ir.KeptDtype),
    ("cache", "device"): get_args(ir.KeptDevice),
    ("cache", "budget"): ("none",),
    ("cache", "refresh_every"): ("never",),
    ("cache", "refresh_last"): ("yes", "no"),
    ("cache", "window"): ("none",),
    ("cache", "sink"): ("none",),
    ("cache", "keys"): ("none",),
}
_WITH_COUNT = {"frames": "a number of frames", "refresh_every": "a number of steps"}
_LEAST = {"frames": 1, "refresh_every": 2}  # refreshed at every step, nothing would ever be reused
_IN_CHUNKS = ("window", "sink")
TOP_KEYS = "top 3 chunks by relevance"
"""How keys are picked, as an example."""
BATCH = "batch"


def check_chunks(given: dict[str, ast.Option], errors: list[Diagnostic]) -> ir.Chunks:
    """Without a word: the model's frames per chunk, and the exact life of a chunk."""
    words = _check("chunks", given, errors)
    return ir.Chunks(
        _count(given.get("frames")),
        cast("Literal['skip', 'compute']", words.get("pending", "skip")),
        cast("Literal['keep', 'refresh', 'compute']", words.get("finished", "refresh")),
        at=_first(given),
    )


def check_cache(given: dict[str, ast.Option], within: Elaborator) -> ir.Cache:
    """Without a word: all as the model has it, less where a budget asks for it; residuals as keys and values."""
    words = _check("cache", given, within.errors)
    budget = given.get("budget")
    return ir.Cache(
        cast(ir.KeptDtype, words.get("dtype", "auto")),
        cast(ir.KeptDtype, words.get("residual", words.get("dtype", "auto"))),
        cast(ir.KeptDevice, words.get("device", "auto")),
        budget.value.bytes if budget is not None and isinstance(budget.value, ast.Size) else None,
        _count(given.get("refresh_every")),
        words.get("refresh_last") == "yes",
        window := _window(given, within),
        _keys(given, window, within),
        at=_first(given) if budget is None else budget.span,
    )


def check_branches(given: ast.BranchesDecl | None, errors: list[Diagnostic]) -> ir.Branches:
    if given is None:
        return ir.Branches(None, batch=False)
    if given.share.text not in BRANCHES:
        errors.append(names.InvalidWord(given.share.span, "share decision of", given.share.text, BRANCHES))
    if given.batch is not None and given.batch.text != BATCH:
        errors.append(names.InvalidWord(given.batch.span, "share decision", given.batch.text, (BATCH,)))
    return ir.Branches(given.share.text, batch=given.batch is not None, at=given.span)


def _first(given: dict[str, ast.Option]) -> Span | None:
    return next((option.span for option in given.values()), None)


def _window(given: dict[str, ast.Option], within: Elaborator) -> ir.KeyWindow | None:
    """The chunks whose keys attention reads; None where it reads all that it may."""
    window, sink = (_chunks(given.get(name), name, least, within) for name, least in (("window", 1), ("sink", 0)))
    if window is None:
        if sink is not None and ("window" not in given or _is_none(given["window"])):
            within.report(layers.SinkAlone(given["sink"].span))
        return None
    return ir.KeyWindow(window, ir.Const(0.0) if sink is None else sink, at=given["window"].span)


def _keys(given: dict[str, ast.Option], window: ir.KeyWindow | None, within: Elaborator) -> ir.KeyChoice | None:
    """How keys of chunks between sink and window are picked; None where none of them is read."""
    option = given.get("keys")
    if option is None or not isinstance(option.value, ast.TopKeys):
        return None
    if window is None and ("window" not in given or _is_none(given["window"])):
        within.report(layers.NothingToPick(option.span))
    chunks = within.demands.whole(within.number(option.value.n), "`keys`", 1, "chunks")
    by = within.keys(option.value.by)
    if isinstance(chunks, Poison) or isinstance(by, Poison):
        return None
    return ir.KeyChoice(chunks.expr, by, at=option.span)


def _is_none(option: ast.Option) -> bool:
    return isinstance(option.value, ast.Name) and option.value.text == "none"


def _chunks(option: ast.Option | None, what: str, least: int, within: Elaborator) -> ir.Expr | None:
    if option is None or not isinstance(option.value, ast.ChunkCount):
        if option is not None and isinstance(option.value, ast.Name):
            within.used.add(option.value.text)  # a parameter without its unit has an error of its own
        return None
    found = within.demands.whole(within.number(option.value.n), f"`{what}`", least, "chunks")
    return ir.Const(float(least)) if isinstance(found, Poison) else found.expr


def _count(option: ast.Option | None) -> int | None:
    if option is None or not isinstance(option.value, ast.Number):
        return None
    return int(option.value.value)


def _check(section: Section, given: dict[str, ast.Option], errors: list[Diagnostic]) -> dict[str, str]:
    """The words given, by option; appends unknown options and values of another kind."""
    known = tuple(name for of, name in OPTION_WORDS if of == section)
    words = {}
    for name, option in given.items():
        if name not in known:
            errors.append(names.UnknownOption(option.name.span, name, section, known))
            continue
        value = option.value
        match value:
            case ast.Name(text=text) if text in OPTION_WORDS[section, name]:
                words[name] = text
            case ast.Size(count) if name == "budget":
                if not count:
                    errors.append(values.OutOfBounds(value.span, "the budget", "1KB", "the memory of the device"))
            case ast.ChunkCount() if name in _IN_CHUNKS:
                continue
            case ast.TopKeys() if name == "keys":
                continue
            case ast.Name() | ast.Number() | ast.ChunkCount() if name == "keys":
                errors.append(layers.KeysNotChosen(value.span, "expected how many, and by what: `top 3 chunks by ...`"))
            case ast.Number(value=number) if name in _WITH_COUNT:
                if not number.is_integer():
                    errors.append(values.NotWhole(value.span, _WITH_COUNT[name], literal=True))
                elif number < _LEAST[name]:
                    errors.append(values.OutOfBounds(value.span, _WITH_COUNT[name], f"{_LEAST[name]}", "1,000,000"))
            case _:
                choices = OPTION_WORDS[section, name]
                if name == "budget":
                    choices = ("2GB", *choices)
                if name in _WITH_COUNT:
                    choices = ("5", *choices)
                if name in _IN_CHUNKS:
                    choices = ("5 chunks", *choices)
                if name == "keys":
                    choices = (TOP_KEYS, *choices)
                errors.append(names.InvalidWord(value.span, name, value.span.text, choices))
    return words
