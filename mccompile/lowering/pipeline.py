"""Runs passes over the parts of a model, and says what each pass did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeAlias, TypeVar

from mccompile import ir
from mccompile.capture.part import Part
from mccompile.capture.types import CapturedModel, Refusal
from mccompile.lowering.coarse import Coarse, find_coarse
from mccompile.lowering.draft import Rewritten

S = TypeVar("S")


class Form(StrEnum):
    """What a part of a lowered model is for."""

    GATHER = "gather"  # rows of shared values
    MODULATED = "modulated"  # the first block up to its modulated input
    PLAIN = "plain"  # a block on all rows
    ROWS = "rows"  # a block on selected rows
    ONCE = "once"  # what a block takes from the prompt alone
    ALLOCATE = "allocate"  # the buffers of a block
    POSTLUDE = "postlude"  # streams to outputs


OF_BLOCKS = (Form.MODULATED, Form.PLAIN, Form.ROWS, Form.ONCE, Form.ALLOCATE)
Place: TypeAlias = tuple[Form, int]  # a form, and the kind of block that it is of; 0 for those of the whole model


@dataclass(frozen=True, slots=True)
class Pieces:
    """The parts of a captured model under a policy, as the passes have left them so far.

    proved: shared masks that are prefixes of the keys. coarse: shared values that blocks can pick for themselves.
    """

    captured: CapturedModel
    policy: ir.PolicyIR
    proved: frozenset[str]
    coarse: tuple[Coarse, ...]
    parts: dict[Place, Part] = field(default_factory=dict)

    @classmethod
    def of(cls, captured: CapturedModel, policy: ir.PolicyIR, proved: frozenset[str]) -> Pieces:
        """Returns the parts as captured. Row forms are among them if every kind of block has one."""
        pieces = cls(captured, policy, proved, find_coarse(captured))
        partials = [k.partial for k in captured.kinds if k.partial is not None]
        by_rows = captured.gather is not None and captured.grid is not None and len(partials) == len(captured.kinds)
        if captured.gather is not None and by_rows:
            pieces.parts[Form.GATHER, 0] = captured.gather
            pieces.parts.update({(Form.ROWS, i): part for i, part in enumerate(partials)})
            pieces.parts.update({(Form.ALLOCATE, i): kind.allocate for i, kind in enumerate(captured.kinds)})
        pieces.parts.update({(Form.PLAIN, i): kind.full for i, kind in enumerate(captured.kinds)})
        pieces.parts[Form.POSTLUDE, 0] = captured.postlude
        return pieces

    def per_kind(self, form: Form) -> tuple[Part, ...]:
        """Returns the parts of a form, one for each kind of block."""
        return tuple(self.parts[form, i] for i in range(len(self.captured.kinds)))


@dataclass(frozen=True, slots=True)
class Pass(Generic[S]):
    """One rewrite of the parts of some forms.

    setting: makes the setting from the pieces and the place of the part. makes: the form of the part that the pass
    makes beside the one that it rewrites. asked: says whether the policy brings the pass in.
    """

    name: str
    on: tuple[Form, ...]
    rewrite: Callable[[Part, S], Rewritten | Refusal]
    setting: Callable[[Pieces, Place], S]
    makes: Form | None = None
    asked: Callable[[ir.PolicyIR], bool] = lambda policy: True


@dataclass(frozen=True, slots=True)
class PassStep:
    """What a pass did to one part. after: the parts that it rewrote and made, by place. There is none if it refused."""

    name: str  # of the pass
    place: Place
    before: Part
    after: Mapping[Place, Part]
    refusal: Refusal | None


WatchPasses: TypeAlias = Callable[[PassStep, Pieces], None]


def run_passes(passes: tuple[Pass[Any], ...], pieces: Pieces) -> Iterator[PassStep]:
    """Runs in order the passes that the policy asks for, each over all parts of its forms. Yields what each one did."""
    for one in passes:
        places = [p for p in pieces.parts if p[0] in one.on] if one.asked(pieces.policy) else []
        for place in places:
            before = pieces.parts[place]
            match one.rewrite(before, one.setting(pieces, place)):
                case Refusal() as refusal:
                    yield PassStep(one.name, place, before, {}, refusal)
                case Rewritten(part, made):
                    after = {place: part}
                    if made and one.makes is not None:
                        (after[one.makes, place[1]],) = made
                    pieces.parts.update(after)
                    yield PassStep(one.name, place, before, after, None)
