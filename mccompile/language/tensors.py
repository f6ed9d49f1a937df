"""What functions of tensors require: of which moment a tensor is, whether it has tokens, and how it may be filtered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.ir import Granularity
from mccompile.language.arguments import BoundCall
from mccompile.language.builtins import DISTANCES, SOURCES
from mccompile.language.demands import Demands
from mccompile.language.errors import tensors, values
from mccompile.language.types import (
    GRANULARITIES,
    POISON,
    Poison,
    Typed,
    TypedNumber,
    TypedTensor,
    described,
    place,
    source_words,
    word,
    written_at,
)
from mccompile.language.walk import walk

WITH_TOKENS = tuple(source.name for source in SOURCES.values() if source.per_token)
_NO_EARLIER_OUTPUT = "no earlier block output is kept; `frame_diff(block_output)` measures its motion between frames"
_OF_A_GAIN = (ir.Const, ir.ParamRef, ir.SignalRef, ir.ClockRef, ir.Table, ir.Frequency, ir.Apply)
_OF_THE_CLOCK = (ir.ClockRef, ir.Table)


def not_of_now(source: TypedTensor) -> str:
    """Why tokens cannot be compared with each other by a tensor; "" where they can."""
    if source.earlier is not None or source.expr.name in ir.TOLD_AFTER:
        return "tokens are compared as they are in this step"
    if source.late:
        return "it is known only when the layers have run"
    return "" if source.expr.gain is None else "tokens are compared by the source itself, without a filter"


class TensorRules:
    """Tensors under the signals and parameters of one policy."""

    def __init__(self, demands: Demands, report: Callable[[Diagnostic], Poison]) -> None:
        self._demands = demands
        self._report = report

    def past(self, call: BoundCall, of: TypedTensor) -> TypedTensor | Poison:
        """`kept(x, n)` or `before(x)`."""
        function = call.function.name
        if of.earlier is not None:
            return self._report(values.NoPast(call.span, function, "it is of an earlier step already"))
        if of.late and function == "kept":
            why = "a block output differs from that of its last computation only while it is not computed"
            return self._report(values.NoPast(call.span, function, why))
        if of.expr.name == "block" and function == "before":
            why = f"a block has a result in the steps that compute it: `kept({source_words(of.expr)})` is the last one"
            return self._report(values.NoPast(call.span, function, why))
        if function == "kept":
            return replace(of, earlier=ir.PastMoment("compute", call.count("n"), at=call.span))
        return replace(of, earlier=ir.PastMoment("step", 1, at=call.span))

    def change(self, call: BoundCall, of: Typed, then: Typed | None, distance: ir.Distance) -> TypedNumber | Poison:
        """A distance of a source now, or at an earlier moment, from itself at another earlier moment."""
        source = self._source(call, of)
        if isinstance(source, Poison) or isinstance(then, Poison):
            return POISON
        if source.earlier is not None and then is None:
            return self._report(values.PastFirst(place(source.expr), call.function.name))
        if source.late:
            return self._report(values.NoPast(place(source.expr), call.function.name, _NO_EARLIER_OUTPUT))
        over = self._cells(call, source)
        if isinstance(over, Poison):
            return POISON
        before = ir.PastMoment("step", 1)
        if then is not None:
            other = self._source(call, then)
            if isinstance(other, Poison):
                return POISON
            if other.earlier is None or other.expr != source.expr or other.earlier == source.earlier:
                return self._other_moment(call, source, other)
            before = other.earlier
        if not self._known(source):
            return POISON
        n = before.n if before.since == "compute" and before.n > 1 else None
        change = ir.Change(distance, source.expr, before.since, over, n, source.earlier, at=call.span)
        return TypedNumber(change, over, measured=True)

    def magnitude(self, call: BoundCall, of: Typed) -> TypedNumber | Poison:
        """`magnitude(x)`: how far a source is from 0."""
        return self._of_itself(call, of, DISTANCES[call.word("by")])

    def deviation(self, call: BoundCall, of: Typed) -> TypedNumber | Poison:
        """`deviation(x)`: how unlike its own numbers are."""
        return self._of_itself(call, of, "deviation")

    def _of_itself(self, call: BoundCall, of: Typed, distance: ir.Distance) -> TypedNumber | Poison:
        """What a source says by itself, compared with no other moment."""
        source = self._source(call, of)
        if isinstance(source, Poison):
            return POISON
        if source.late:
            return self._report(values.NoPast(place(source.expr), call.function.name, _NO_EARLIER_OUTPUT))
        over = self._cells(call, source)
        if isinstance(over, Poison) or not self._known(source):
            return POISON
        change = ir.Change(distance, source.expr, "zero", over, None, source.earlier, at=call.span)
        return TypedNumber(change, over, measured=True)

    def motion(self, call: BoundCall, of: Typed) -> TypedNumber | Poison:
        """`frame_diff(x)`: how far each token is from the same place one frame earlier."""
        source = self._source(call, of)
        if isinstance(source, Poison):
            return POISON
        if source.earlier is not None and source.expr.name not in ir.TOLD_AFTER:
            return self._report(values.PastFirst(place(source.expr), "frame_diff"))
        if source.expr.gain is not None:
            advice, at = "`frame_diff` measures the source itself", place(source.expr)
            return self._report(values.WrongType(at, "a tensor of the model", described(source), advice))
        if not source.per_token:
            return self._no_tokens(source, "`frame_diff`")
        if not self._known(source):
            return POISON
        expr = ir.FrameDiff(source.expr, call.word("relative") == "yes", source.earlier, at=call.span)
        return TypedNumber(expr, Granularity.TOKEN, late=source.late, measured=True)

    def similarity(self, call: BoundCall, of: Typed) -> TypedNumber | Poison:
        """`similarity(x, stride = 2)`: how like each token is to the most similar anchor of its chunk."""
        source = self._source(call, of)
        if isinstance(source, Poison) or not self._known(source):
            return POISON
        if source.expr.gain is not None:
            advice, at = "`similarity` compares tokens by the source itself", place(source.expr)
            return self._report(values.WrongType(at, "a tensor of the model", described(source), advice))
        why = not_of_now(source)
        if why:
            return self._report(values.NoPast(place(source.expr), "similarity", why))
        if not source.per_token:
            return self._no_tokens(source, "`similarity`")
        expr = ir.Similarity(source.expr, call.count("stride"), at=call.span)
        return TypedNumber(expr, Granularity.TOKEN, measured=True)

    def filtered(self, call: BoundCall, of: Typed, gain: TypedNumber | Poison) -> TypedTensor | Poison:
        """`filter(x, gain = ...)`: the same tensor, its frequencies weighted."""
        source = self._source(call, of)
        if isinstance(source, Poison) or isinstance(gain, Poison):
            return POISON
        if source.earlier is not None or source.expr.gain is not None or source.late:
            name = source_words(source.expr)
            advice = f"filter the source itself: `kept(filter({name}, gain = ...))`"
            expected = "a source of the running step"
            return self._report(values.WrongType(place(source.expr), expected, described(source), advice))
        if not source.per_token:
            return self._no_tokens(source, "`filter`")
        why = self._no_gain(source, gain)
        if why:
            return self._report(tensors.InvalidGain(place(gain.expr), why))
        return replace(source, expr=replace(source.expr, gain=gain.expr))

    def _no_gain(self, source: TypedTensor, gain: TypedNumber) -> str:
        """Why a number is no gain; "" where it is one."""
        read = tuple(walk(gain.expr, self._demands.ranges.signals))
        if not any(isinstance(e, ir.Frequency) for e in read):
            return "the same at every `frequency`"
        if not all(isinstance(e, _OF_A_GAIN) for e in read):
            return "more than `frequency`, clock values, tables, parameters and numbers"
        if source.expr.name in ir.TOLD_AFTER and any(isinstance(e, _OF_THE_CLOCK) for e in read):
            said = source_words(source.expr)
            return f"of `{said}`, a gain has no clock values: it is filtered when it is compared"
        return ""

    def _known(self, source: TypedTensor) -> bool:
        """Reports what the running step tells when it has run."""
        if source.expr.name in ir.TOLD_AFTER and source.earlier is None:
            self._report(tensors.NotYetKnown(place(source.expr), source_words(source.expr)))
            return False
        return True

    def _source(self, call: BoundCall, found: Typed) -> TypedTensor | Poison:
        if isinstance(found, TypedTensor | Poison):
            return found
        advice = f"`{call.function.name}` compares tensors: `latent`, `modulation`, ..."
        return self._report(values.WrongType(written_at(found), "a tensor", described(found), advice))

    def _cells(self, call: BoundCall, source: TypedTensor) -> Granularity | Poison:
        """What there is one result for."""
        over = GRANULARITIES[call.word("over")]
        if over > Granularity.CHUNK and not source.per_token:
            return self._no_tokens(source, f"`over = {word(over)}`")
        return over

    def _other_moment(self, call: BoundCall, source: TypedTensor, other: TypedTensor) -> Poison:
        name, function = source_words(source.expr), call.function.name
        advice = " or ".join(f"`{function}({name}, {past}({name}))`" for past in ("kept", "before"))
        expected = f"an earlier `{name}`"
        if source.earlier is not None:
            advice, expected = f"`{function}(kept({name}), kept({name}, 2))`", f"`{name}` at another moment"
        return self._report(values.WrongType(call.values["then"].span, expected, described(other), advice))

    def _no_tokens(self, source: TypedTensor, needs: str) -> Poison:
        found = f"`{source_words(source.expr)}` has no tokens"
        return self._report(values.NotPerToken(source.expr.at, needs, found, WITH_TOKENS))
