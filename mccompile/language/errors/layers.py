"""MC024x and MC025x: layers, what is kept, and policies that extend each other."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Edit, Help, Label, nearest, words
from mccompile.diagnostics.source import Span


@dataclass(frozen=True, slots=True)
class OverlappingLayers(Diagnostic):
    code = "MC0240"
    title = "blocks claimed twice"
    label = "{claim}"
    note = "each block lies in one region"
    claim: str
    first: Span

    def secondary(self) -> tuple[Label, ...]:
        return (Label(self.first, "first claim"),)


@dataclass(frozen=True, slots=True)
class EmptyLayers(Diagnostic):
    code = "MC0241"
    title = "the range of blocks is empty"
    label = "ends before it begins"


@dataclass(frozen=True, slots=True)
class NothingKept(Diagnostic):
    code = "MC0242"
    title = "the policy reuses, but keeps nothing"
    label = "what would be reused?"

    def helps(self) -> tuple[Help, ...]:
        return (Help("say what is kept: `layers blocks[*] { keep residual }`"),)


@dataclass(frozen=True, slots=True)
class NeverReused(Diagnostic):
    code = "MC0243"
    title = "what is kept is never reused"
    label = "kept for nothing: every phase computes"

    def helps(self) -> tuple[Help, ...]:
        return (Help("let a phase reuse it, or take these layers out"),)


@dataclass(frozen=True, slots=True)
class UnknownRegion(Diagnostic):
    """A phase has a rule for regions that no `layers` names, or for those that are always computed."""

    code = "MC0246"
    title = "no kept layers are named `{name}`"
    label = "whose rule is this?"
    name: str
    known: tuple[str, ...]

    def helps(self) -> tuple[Help, ...]:
        if not self.known:
            return (Help(f"name the layers: `layers {self.name} = blocks[*] {{ keep residual }}`"),)
        meant = nearest(self.name, self.known)
        if meant is None or self.span is None:
            return (Help(f"the names are {words(self.known, 'and')}"),)
        return (Help(f"did you mean `{meant}`?", Edit(self.span, meant)),)


@dataclass(frozen=True, slots=True)
class IdleRegionName(Diagnostic):
    code = "MC0247"
    title = "the name `{name}` decides nothing"
    label = "{why}"
    name: str
    why: str

    def helps(self) -> tuple[Help, ...]:
        return (Help(f"give it a rule in a phase, `{self.name}: compute every 2 steps`, or take the name away"),)


@dataclass(frozen=True, slots=True)
class UnknownSublayer(Diagnostic):
    """A part of blocks that has none of the names of sublayers."""

    code = "MC0248"
    title = "blocks have no part `{name}`"
    label = "expected `attn`, `cross` or `ffn`"
    name: str

    def helps(self) -> tuple[Help, ...]:
        lower = self.name.lower().replace("_", "")
        meant = next((part for part, others in _OTHERWISE.items() if lower in others), None)
        meant = meant or nearest(self.name, tuple(_OTHERWISE))
        if meant is None or self.span is None:
            return (Help("`attn` is self-attention, `cross` attention to the text, `ffn` the feed-forward part"),)
        return (Help(f"did you mean `{meant}`?", Edit(self.span, meant)),)


_OTHERWISE = {
    "attn": ("attention", "attn1", "self", "selfattn", "selfattention", "temporal", "spatial"),
    "cross": ("attn2", "crossattn", "crossattention", "text"),
    "ffn": ("ff", "mlp", "feedforward"),
}
"""What other code calls the sublayers."""


@dataclass(frozen=True, slots=True)
class NotEach(Diagnostic):
    """`each` before layers that are no blocks which decide."""

    code = "MC0274"
    title = "`each` needs blocks that are kept"
    label = "these layers are {what}"
    what: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("name blocks, and say what is kept: `layers each blocks[1..] { keep residual }`"),)


@dataclass(frozen=True, slots=True)
class NoDepth(Diagnostic):
    """`depth` where no single block decides."""

    code = "MC0290"
    title = "`depth` has a value in the rules of blocks that decide apart"
    label = "{why}"
    why: str
    layers: Span | None = None

    def secondary(self) -> tuple[Label, ...]:
        return () if self.layers is None else (Label(self.layers, "these layers decide together"),)

    def helps(self) -> tuple[Help, ...]:
        if self.layers is None:
            return (Help("write it in a rule, or make a function of it that the rule calls"),)
        return (Help("let each block decide: `layers each blocks[*] { keep residual }`"),)


@dataclass(frozen=True, slots=True)
class GapOfBoth(Diagnostic):
    """A rule of all branches that reuses the gap between them."""

    code = "MC0272"
    title = "the gap between the branches stands in for one of them only"
    label = "reuses the output of both branches"

    def helps(self) -> tuple[Help, ...]:
        return (Help("name the branch that is reused: `uncond: compute every 3 steps`"),)


@dataclass(frozen=True, slots=True)
class ReusedWithin(Diagnostic):
    """A branch in which the output of the model is reused, and layers within the model too."""

    code = "MC0275"
    title = "layers within the model are reused where the model is"
    note = "where the output of the model stands in, nothing within it runs, so its layers would miscount their steps"
    of: str
    model: Span | None

    def span_label(self) -> str:
        where = f"the calls of `{self.of}`" if self.of else "the calls of every branch"
        return f"reuses a part of the model in {where}"

    def secondary(self) -> tuple[Label, ...]:
        return () if self.model is None else (Label(self.model, "reuses all of it there"),)

    def helps(self) -> tuple[Help, ...]:
        return (Help("give both names, and reuse them in different branches: `attn: ...` and `uncond.whole: ...`"),)


@dataclass(frozen=True, slots=True)
class ModelByToken(Diagnostic):
    """A rule that reuses parts of the chunks of a model whose layers or frequencies are told apart."""

    code = "MC0276"
    title = "the output of the model is reused by token, and {why}"
    label = "decides about parts of a chunk"
    why: str
    model: Span | None

    def secondary(self) -> tuple[Label, ...]:
        return () if self.model is None else (Label(self.model, "what is reused"),)

    def helps(self) -> tuple[Help, ...]:
        return (Help("decide by `step` or by `chunk`"),)


@dataclass(frozen=True, slots=True)
class SharedAndApart(Diagnostic):
    """A policy whose branches follow one branch, and have rules of their own."""

    code = "MC0273"
    title = "the branches share a decision, and have rules of their own"
    label = "the other branch follows `{leader}`"
    leader: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("take this section out, or the rules of one branch"),)


@dataclass(frozen=True, slots=True)
class NoProbe(Diagnostic):
    code = "MC0244"
    title = "`probe` has no blocks to look at"
    label = "the residual of the blocks that are always computed"

    def helps(self) -> tuple[Help, ...]:
        return (Help("compute some blocks before the kept ones: `layers blocks[0..0] { compute }`"),)


@dataclass(frozen=True, slots=True)
class UnmeasuredWeight(Diagnostic):
    """A phase that reuses layers and does not measure the signal by which their stand-in is weighed."""

    code = "MC0249"
    title = "the weight `{name}` is not measured in phase `{phase}`"
    label = "{why}"
    name: str
    phase: str
    why: str

    def helps(self) -> tuple[Help, ...]:
        return (Help("reuse by a condition, `reuse chunk while ...`, or weigh by clock values alone"),)


@dataclass(frozen=True, slots=True)
class ExtendsCycle(Diagnostic):
    code = "MC0250"
    title = "the policy `{name}` extends itself"
    label = "leads back to `{name}`"
    name: str
    path: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        return (" extends ".join(f"`{name}`" for name in self.path),)


@dataclass(frozen=True, slots=True)
class KindChanged(Diagnostic):
    """A parameter of the base declared as a signal, or the other way round."""

    code = "MC0251"
    title = "the {what} `{name}` takes the place of a {was} of the base"
    label = "declared as a {what}"
    name: str
    what: str
    was: str
    base: Span

    def secondary(self) -> tuple[Label, ...]:
        return (Label(self.base, f"a {self.was} here"),)

    def helps(self) -> tuple[Help, ...]:
        return (Help(f"choose another name, such as `my_{self.name}`"),)


@dataclass(frozen=True, slots=True)
class RefusedBase(Diagnostic):
    """A file that is no policy beside this one or below."""

    code = "MC0252"
    title = "the file `{path}` cannot be extended"
    label = "{why}"
    note = "a policy extends a policy that comes with mccompile, or a `.policy` file in its own folder or below"
    path: str
    why: str


PICKED = (
    "keys are picked by a sum of measures: `signal relevance = 0.07 * attention(key) - 0.93 * redundancy(key)`, and "
    "`cache { window: 2 chunks  keys: top 3 chunks by relevance }`"
)


@dataclass(frozen=True, slots=True)
class KeysNotChosen(Diagnostic):
    """A choice among the kept keys by something else than a sum of measures of keys."""

    code = "MC0288"
    title = "keys cannot be picked so"
    label = "{why}"
    note = "one set of keys is picked for all tokens of a chunk: sets of their own would need a mask of tokens and keys"
    why: str

    def helps(self) -> tuple[Help, ...]:
        return (Help(PICKED),)


@dataclass(frozen=True, slots=True)
class NothingToPick(Diagnostic):
    """Keys that are picked though no window leaves any out."""

    code = "MC0294"
    title = "`keys` without a `window` picks nothing"
    label = "every key is read in any case"
    note = "keys are picked from the chunks that a window has left behind; without one attention reads all of them"

    def helps(self) -> tuple[Help, ...]:
        return (Help("say how many of the last chunks are read whole: `window: 2 chunks`"),)


@dataclass(frozen=True, slots=True)
class NeverWhole(Diagnostic):
    """Keys that are picked when a chunk is computed whole, of layers whose tokens take from computed ones."""

    code = "MC0295"
    title = "keys are picked when a chunk's last frame is computed whole"
    label = "{why}"
    why: str
    region: Span | None

    def secondary(self) -> tuple[Label, ...]:
        return () if self.region is None else (Label(self.region, "a token takes what another one of its chunk gets"),)

    def helps(self) -> tuple[Help, ...]:
        return (Help("read keys by their place alone: `cache { keys: none }`, or keep residuals: `keep residual`"),)


@dataclass(frozen=True, slots=True)
class SinkAlone(Diagnostic):
    """The first chunks are kept in sight though no window leaves them out."""

    code = "MC0293"
    title = "a `sink` without a `window` changes nothing"
    label = "the first chunks are read in any case"
    note = "without a window attention reads the keys of every chunk up to a token's own"

    def helps(self) -> tuple[Help, ...]:
        return (Help("say how many of the last chunks are read as well: `window: 5 chunks`"),)


@dataclass(frozen=True, slots=True)
class NotAStandIn(Diagnostic):
    """Something behind `reuse as` that is no weighted sum of kept results."""

    code = "MC0257"
    title = "`reuse as` takes a weighted sum of kept results"
    label = "{why}"
    why: str
    of_model: bool = False

    def helps(self) -> tuple[Help, ...]:
        if self.of_model:
            return (Help("for example `0.9 * kept(output)` or `low_pass(kept(gap)) + 1.1 * high_pass(kept(gap))`"),)
        return (Help("for example `taylor(residual, order = 2)` or `1.5 * kept(residual) - 0.5 * kept(residual, 2)`"),)


@dataclass(frozen=True, slots=True)
class NoNearest(Diagnostic):
    """`nearest` where no token can take what another one gets, or by what does not tell which token is nearest."""

    code = "MC0291"
    title = "no token can take what the nearest one gets here"
    label = "{why}"
    why: str
    other: Span | None = None

    def secondary(self) -> tuple[Label, ...]:
        return () if self.other is None else (Label(self.other, "decided about together with these"),)

    def helps(self) -> tuple[Help, ...]:
        return (Help("for example `layers blocks[*] { keep residual  reuse as nearest(residual, by = embedded) }`"),)


@dataclass(frozen=True, slots=True)
class NothingNear(Diagnostic):
    """A rule that computes no token of a chunk, of layers whose tokens take from computed ones."""

    code = "MC0292"
    title = "the rule leaves no token from which the others could take"
    label = "{why}"
    why: str
    region: Span | None

    def secondary(self) -> tuple[Label, ...]:
        return () if self.region is None else (Label(self.region, "a token takes what another one of its chunk gets"),)

    def helps(self) -> tuple[Help, ...]:
        return (Help("compute some tokens of each chunk: `compute top 60% of tokens by ...`, `reuse token while ...`"),)
