"""What a calibration measures: the signals, the regions, and the policy under which every call is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.language.load import load_policy
from mccompile.policy.facts import keeps_increment
from mccompile.policy.groups import groups
from mccompile.policy.influence import fits_of
from mccompile.studio.calibrate.errors import NotMeasurable

DEFAULT_SIGNAL = "rel_l1(modulation)"
_TEXT = """policy calibrate {{
  signal asked = {signal}
  phase all {{ reuse chunk while asked < 0.5 }}
  layers blocks[0] {{ compute }}
  layers blocks[1..] {{ keep residual }}
}}
"""
_NEVER = ir.Const(-1.0)  # no distance is below it


@dataclass(frozen=True, slots=True)
class Measurement:
    """signals: distances of a source from its value one step ago, each chunk measured alone. policy: measures them."""

    signals: tuple[ir.Change, ...]
    policy: ir.PolicyIR

    @property
    def kept(self) -> tuple[str, ...]:
        """The cached regions in order of depth: their names, their part of the blocks, or their blocks."""
        kept = [r for r in self.policy.regions if r.keep is not None]
        return (_name(kept[0]),) if len(kept) == 1 else groups(self.policy)


def asked_by(texts: Sequence[str], policy: ir.PolicyIR | None) -> Measurement:
    """The measurement of signals in the words of the language.

    policy: its regions and the length of its chunks hold; without texts, the arguments of its polynomials are the
    signals. Raises NotMeasurable (MC0772), and PolicyError for words that are none of the language.
    """
    signals = tuple(dict.fromkeys(_signal(text) for text in texts))
    if not signals and policy is not None:
        signals = tuple(dict.fromkeys(_distance(fit.of, policy) for fit in fits_of(policy)))
    signals = signals or (_signal(DEFAULT_SIGNAL),)
    regions = () if policy is None else policy.regions
    if any(isinstance(r.where, ir.Integration | ir.WholeModel) for r in regions):
        assert policy is not None
        what = "increments of the sampler's step" if keeps_increment(policy) else "the output of the model"
        why = f"it keeps {what}, and no residual of blocks"
        raise NotMeasurable(f"policy {policy.name if policy else ''}", why, "give a policy with `layers`")
    if all(r.keep is None for r in regions):
        regions = (ir.Region(ir.Blocks(0, -1), "residual"),)
    frames = None if policy is None else policy.chunks.frames
    alone = sum(r.keep is not None for r in regions) == 1
    return Measurement(signals, _measuring(signals, tuple(_plain(r, alone) for r in regions), frames))


def _plain(region: ir.Region, alone: bool) -> ir.Region:
    """The region with the residual itself in the place of whatever it keeps; of a part of blocks what it keeps.

    alone: it is the only one. Others get a name each, so that each is measured apart; those of one part are one.
    """
    keep = region.keep if isinstance(region.where, ir.Sublayers) else region.keep and "residual"
    name = None if alone or keep is None else _name(region)
    return replace(region, forecast=None, name=name, keep=keep)


def _measuring(signals: Sequence[ir.Change], regions: tuple[ir.Region, ...], frames: int | None) -> ir.PolicyIR:
    """Computes everything, as the exact policy does, and keeps residuals and the values of the sources all the same."""
    below: list[ir.Expr] = [ir.Apply("lt", (signal, _NEVER)) for signal in signals]
    never = reduce(lambda a, b: ir.Apply("or", (a, b)), below)
    rule = ir.Reuse(ir.Granularity.CHUNK, never, None, None, None, None, None, None)
    return ir.PolicyIR(
        name="calibrate",
        models=(),
        params=(),
        signals=(),
        phases=(ir.Phase("all", ir.Rest(), rule),),
        regions=regions,
        chunks=ir.Chunks(frames, "skip", "refresh"),
        branches=ir.Branches(None, batch=False),
        cache=ir.Cache("auto", "auto", "auto", None, None, refresh_last=False),
    )


def _signal(text: str) -> ir.Change:
    try:
        policy = load_policy(_TEXT.format(signal=text))
    except PolicyError as error:
        raise NotMeasurable(f"--signal {text}", str(error).splitlines()[0], _REMEDY) from error
    return _distance(policy.signals[0].expr, policy)


_REMEDY = f"write a distance of a source: `{DEFAULT_SIGNAL}`, `rel_l1(modulated_input)`, `l1(latent)`"


def _distance(expr: ir.Expr, policy: ir.PolicyIR) -> ir.Change:
    """The distance that an expression is; `over` is put to the chunk."""
    named = {s.name: s.expr for s in policy.signals}
    while isinstance(expr, ir.SignalRef):
        expr = named[expr.name]
    where = f"a signal of policy {policy.name}" if policy.name != "calibrate" else "the signal"
    if not isinstance(expr, ir.Change):
        raise NotMeasurable(where, "it is no distance of a source", _REMEDY)
    if expr.since == "zero" or expr.n is not None or expr.a is not None or expr.of.gain is not None:
        raise NotMeasurable(where, "it is no distance of a source from its value at one earlier step", _REMEDY)
    if expr.over > ir.Granularity.CHUNK:
        raise NotMeasurable(where, "it has a value per token or frame, and the output moves by chunks", _REMEDY)
    return replace(expr, since="step", over=ir.Granularity.CHUNK)


def _name(region: ir.Region) -> str:
    where = region.where
    assert isinstance(where, ir.Blocks | ir.Sublayers)
    if region.name is not None:
        return region.name
    return f"blocks {where.first}..{where.last}" if isinstance(where, ir.Blocks) else where.part


def slug(signal: ir.Change) -> str:
    """The name of a signal in the names of sets: its source, with the distance unless it is rel_l1."""
    return signal.of.name if signal.distance == "rel_l1" else f"{signal.of.name}_{signal.distance}"
