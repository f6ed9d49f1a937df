"""What capture found of a model, proved and refused, and what each shipped policy comes to on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import assert_never

from torch import nn

from mccompile import api, ir
from mccompile.capture.types import (
    AnyGrid,
    Beside,
    BlockSite,
    CapturedModel,
    OneFrame,
    PlacedGrid,
    Port,
    TokenGrid,
    ToldGrid,
)
from mccompile.diagnostics.failure import Failure
from mccompile.generate.errors import OptionRefused
from mccompile.language.load import load_policy
from mccompile.language.walk import all_rules, cell_of
from mccompile.lowering.lower import ONLY_COMPUTES, lower
from mccompile.policy.facts import computes_always
from mccompile.resources import shipped_policies
from mccompile.runtime.stand_in import SLOTS

Finding = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a policy comes to on a model. decides: per what it decides, or that it is refused. why: a reason, or ""."""

    policy: str
    decides: str
    why: str


def findings(captured: CapturedModel) -> list[Finding]:
    """(what, in words): what was found and proved of a model, then what was refused."""
    kinds = "all of one kind" if len(captured.kinds) == 1 else f"of {len(captured.kinds)} kinds"
    rows = [
        ("model", captured.model_class),
        ("captured", "its blocks alone" if captured.opaque else "whole"),
        ("path", _path(captured)),
        ("blocks", f"{len(captured.blocks)}, {kinds}"),
        *(("stream", _stream(port)) for port in captured.streams if port.name in captured.entry),
        ("grid", _grid(captured.grid)),
        ("rows", "any tokens of every block" if _by_rows(captured) else "none: a step computes all tokens or none"),
        ("samples", _samples(captured)),
    ]
    mixing = dict.fromkeys(m for kind in captured.kinds for m in kind.mixing)
    rows += [("over all tokens", f"{m.site}: {m.reason}") for m in mixing]
    return [*rows, *(("refused", f"{r.site}: {r.reason}") for r in captured.refusals)]


def parts_of(prepared: api.Prepared) -> dict[str, api.Prepared]:
    """The captures of the transformers of a pipeline, by their places; the place of the only one is ""."""
    if not prepared.others:
        return {"": prepared}
    return {SLOTS[0]: prepared, **{slot: prepared.of(slot) for slot in prepared.others}}


def effects(prepared: api.Prepared) -> list[Effect]:
    """One for each shipped policy, in the order of their names."""
    return [effect(prepared, load_policy(name)) for name in sorted(shipped_policies())]


def effect(prepared: api.Prepared, policy: ir.PolicyIR) -> Effect:
    """What a policy comes to on a captured model. Nothing is compiled."""
    try:
        lowered = lower(prepared.model, policy, prepared.prefixes)
    except Failure as failure:
        return Effect(policy.name, "refused", failure.diagnostics[0].message())
    asked = max(map(cell_of, all_rules(policy)))
    reasons = [r.reason for r in lowered.refusals]
    if computes_always(policy):
        return Effect(policy.name, "-", "the model itself")
    if ONLY_COMPUTES in reasons:
        return Effect(policy.name, "computes all", ONLY_COMPUTES)
    if asked > ir.Granularity.STEP and lowered.rows is None:
        return Effect(policy.name, "step", next(r for r in reasons if r.startswith("decided per step")))
    return Effect(policy.name, asked.name.lower(), "")


def _path(captured: CapturedModel) -> str:
    """The way from the latent to the output."""
    lists = [_run(list(sites)) for _, sites in groupby(captured.blocks, lambda b: b.path.rpartition(".")[0])]
    return " -> ".join(["inputs", "prelude", *lists, "postlude", "output"])


def _run(sites: list[BlockSite]) -> str:
    name, _, first = sites[0].path.rpartition(".")
    last = sites[-1].path.rpartition(".")[2]
    return f"{name}[{first}]" if first == last else f"{name}[{first}..{last}]"


def _stream(port: Port) -> str:
    if port.token_axis is None:
        return f"{port.name}: other values"
    if port.beside is None:
        return f"{port.name}: its axis {port.token_axis} holds no single run of video tokens"
    return f"{port.name}: video tokens along axis {port.token_axis}{_others(port.beside)}"


def _others(beside: Beside) -> str:
    counts = ((beside.before, "before them"), (beside.after, "behind them"))
    words = [f"{'a varying number' if n is None else n} {where}" for n, where in counts if n != 0]
    return f", others {' and '.join(words)}" if words else ""


def _grid(grid: AnyGrid | None) -> str:
    match grid:
        case None:
            return "not known"
        case TokenGrid(source, (frames, height, width), patch):
            axes = f"axes {frames}, {height}, {width}" if frames is not None else f"one frame, axes {height}, {width}"
            return f"{axes} of {source}, patches of {' x '.join(map(str, patch))}"
        case ToldGrid(source, sizes):
            return f"tokens along axis {grid.axis} of {source}; frames, height, width are {', '.join(map(str, sizes))}"
        case PlacedGrid(source, places):
            return f"tokens along axis {grid.axis} of {source}; {places} says where each of them lies"
        case OneFrame(source, axis, places):
            return f"one frame, along axis {axis} of {source}, as far as {places} says that it is of the first frame"
        case _:
            assert_never(grid)


def _by_rows(captured: CapturedModel) -> bool:
    return captured.gather is not None and captured.grid is not None and all(k.partial for k in captured.kinds)


def _samples(captured: CapturedModel) -> str:
    if captured.samples:
        return f"any number, along {', '.join(captured.samples)}"
    if captured.each:
        return f"any number, one after the other: {captured.unbatched}"
    return f"the recorded number: {captured.unbatched}" if captured.unbatched else "any number, as the model takes them"


def prepare_module(text: str) -> api.Prepared:
    """Captures what a function of a file makes. Raises what `load_module` raises, and what capture raises."""
    model, probe, second = load_module(text)
    return api.prepare(model, probe=probe, second=second)


def load_module(text: str) -> tuple[nn.Module, dict[str, object], dict[str, object]]:
    """What a function of a file makes; text: FILE.py:FUNCTION.

    The function returns (module, first call, second call): a torch.nn.Module, and two dicts of keyword arguments of
    its forward at two sizes. Raises OptionRefused (MC0705) where it does not.
    """
    path, _, name = text.rpartition(":")
    option = f"--module {text}"
    spec = importlib.util.spec_from_file_location("module_of_the_user", path) if Path(path).is_file() else None
    if spec is None or spec.loader is None or not name.isidentifier():
        raise OptionRefused(option, "it names no function of a Python file", "give FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = vars(module)[name]()
    except Exception as error:  # whatever the user's own code raises
        why = f"{type(error).__name__}: {error}"
        raise OptionRefused(option, why, "see that the function runs by itself") from error
    match found:
        case (nn.Module() as model, Mapping() as probe, Mapping() as second):
            return model.eval(), dict(probe), dict(second)
    raise OptionRefused(
        option, f"it returned {type(found).__name__}", "return (module, first call, second call), see docs/cli.md"
    )
