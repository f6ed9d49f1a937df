"""Where a block is cut into sublayers: small graphs, with the names of their sublayers or the reason against a cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
import torch
from torch import fx

from mccompile.capture.part import Operand, Part, Result, Stream
from mccompile.ir import SublayerName
from mccompile.lowering.sublayers import Chain, Inseparable
from tests.lowering.refusing import TEXT, K, V, X, part_of, sdpa

aten = torch.ops.aten
MADE, Y, MADE_Y = Stream("made"), Stream("y"), Stream("made_y")
At = Mapping[str, fx.Node]
Body = Callable[["Writer", At], "fx.Node | int"]


class Writer:
    """Writes the operators of a block. Every method returns the value that it makes, under a name if one is given."""

    def __init__(self, call: Callable[..., fx.Node]) -> None:
        self._call = call

    def add(self, one: fx.Node, other: object, name: str = "") -> fx.Node:
        return self._made(aten.add.Tensor, (one, other), name)

    def mul(self, one: fx.Node, other: object, name: str = "") -> fx.Node:
        return self._made(aten.mul.Tensor, (one, other), name)

    def attend(self, q: fx.Node, k: fx.Node, name: str = "", v: fx.Node | None = None) -> fx.Node:
        return self._made(sdpa, (q, k, k if v is None else v), name)

    def empty(self, like: fx.Node) -> fx.Node:
        return self._made(aten.empty_like.default, (like,), "")

    def layer(self, value: fx.Node, name: str = "") -> fx.Node:
        """Any operator on each token by itself."""
        return self._made(aten.neg.default, (value,), name)

    def cast(self, value: fx.Node, name: str = "") -> fx.Node:
        return self._made(aten.to.dtype, (value, torch.float32), name)

    def like(self, value: fx.Node, other: fx.Node, name: str = "") -> fx.Node:
        return self._made(aten.type_as.default, (value, other), name)

    def sized(self, value: fx.Node, of: fx.Node, name: str = "") -> fx.Node:
        """A value with as many samples as another one has."""
        size = self._call(aten.sym_size.int, (of, 0))
        return self._made(aten.expand.default, (value, [size, -1, -1, -1]), name)

    def keep(self, buffer: fx.Node, value: fx.Node) -> fx.Node:
        return self._call(aten.copy_.default, (buffer, value))

    def _made(self, target: Callable[..., object], args: tuple[object, ...], name: str) -> fx.Node:
        node = self._call(target, args)
        if name:
            node.name = name
        return node


def part(body: Body, **more: Operand) -> Part:
    def written(call: Callable[..., fx.Node], at: dict[str, fx.Node]) -> dict[Stream, fx.Node]:
        return {MADE: body(Writer(call), at)}  # type: ignore[dict-item]

    takes: dict[Operand, str] = {X: "x", TEXT: "text"} | {operand: name for name, operand in more.items()}
    return part_of(takes, written)  # type: ignore[arg-type]


def chain(body: Body, token_wise: bool = True, **more: Operand) -> Chain:
    return Chain(part(body, **more), {X: MADE}, frozenset({X}), token_wise)


def usual(w: Writer, at: At) -> fx.Node:
    one = w.add(at["x"], w.attend(at["x"], at["x"]), "one")
    two = w.add(one, w.attend(one, at["text"]), "two")
    return w.add(two, w.layer(two), "three")


def keys_of_many_ways(w: Writer, at: At) -> fx.Node:
    """Keys are a sum of a sum with itself, sixty times: each is looked at once, and not once for each way to it."""
    keys = at["text"]
    for _ in range(60):
        keys = w.add(w.layer(keys), w.cast(keys))
    one = w.add(at["x"], w.attend(at["x"], keys), "one")
    return w.add(one, w.layer(one), "two")


def adds_in_front(w: Writer, at: At) -> fx.Node:
    """What is added may stand before the stream."""
    one = w.add(w.attend(at["x"], at["x"]), at["x"], "one")
    return w.add(w.layer(one), one, "two")


def two_layers(w: Writer, at: At) -> fx.Node:
    one = w.add(at["x"], w.layer(at["x"]), "one")
    return w.add(one, w.layer(one), "two")


def two_attentions(w: Writer, at: At) -> fx.Node:
    one = w.add(at["x"], w.attend(at["x"], at["x"]), "one")
    two = w.add(one, w.attend(one, one), "two")
    return w.add(two, w.layer(two), "three")


def casts_of_sums(w: Writer, at: At) -> fx.Node:
    """A cast of a sum is no sublayer of its own."""
    one = w.cast(w.add(at["x"], w.attend(at["x"], at["x"])), "one")
    two = w.cast(w.add(w.cast(one), w.attend(one, at["text"])), "two")
    return w.cast(w.add(two, w.layer(two)))


def casts_to_what_entered(w: Writer, at: At) -> fx.Node:
    """The cast asks for the type of the stream as it was, so the cut is behind it."""
    one = w.like(w.add(w.cast(at["x"]), w.attend(at["x"], at["x"])), at["x"], "one")
    return w.like(w.add(w.cast(one), w.layer(one)), one)


def sums_read_both_ways(w: Writer, at: At) -> fx.Node:
    """The sum is read as it is, and behind its cast: only in front of the cast one value is all that is read."""
    one = w.add(at["x"], w.attend(at["x"], at["x"]), "one")
    return w.add(w.cast(one), w.layer(one))


def gate_of_text(w: Writer, at: At) -> fx.Node:
    one = w.add(at["x"], w.mul(w.attend(at["x"], at["x"], "attended"), at["text"]), "one")
    return w.add(one, w.mul(at["text"], w.cast(w.layer(one, "fed"))), "two")


def gate_of_the_stream(w: Writer, at: At) -> fx.Node:
    gated = w.mul(w.attend(at["x"], at["x"]), w.layer(at["x"]), "gated")
    one = w.add(at["x"], w.layer(gated, "projected"), "one")
    return w.add(one, w.layer(one, "fed"), "two")


def scaled_stream(w: Writer, at: At) -> fx.Node:
    """What is added is the stream itself, scaled."""
    return w.add(at["x"], w.mul(at["x"], at["text"], "scaled"), "one")


def earlier_sizes(w: Writer, at: At) -> fx.Node:
    """The last sublayer asks how large the stream was when it entered, and how large it is now."""
    one = w.add(at["x"], w.attend(at["x"], at["x"]), "one")
    return w.add(one, w.sized(w.sized(w.layer(one), at["x"]), one), "two")


def added_text(w: Writer, at: At) -> fx.Node:
    """Casts to the type of the stream, and sums of other values, do not continue it."""
    other = w.like(w.add(at["text"], at["text"]), at["x"])
    return w.add(at["x"], other)


def many_sums(w: Writer, at: At) -> fx.Node:
    """A sum of a sum with itself, forty times: each is looked at once, and not once for each way to it."""
    other = at["text"]
    for _ in range(40):
        other = w.add(other, other)
    return w.add(at["x"], other, "one")


def many_keys(w: Writer, at: At) -> fx.Node:
    keys = at["text"]
    for _ in range(40):
        keys = w.add(keys, keys)
    return w.add(at["x"], w.attend(at["x"], keys))


def written_and_not_read(w: Writer, at: At) -> fx.Node:
    """Nobody outside of the block sees what is written to a value of its own."""
    one = w.add(at["x"], w.attend(at["x"], at["x"]), "one")
    w.keep(w.empty(at["text"]), w.layer(at["x"]))
    return w.add(one, w.layer(one))


def keys_of_a_size(w: Writer, at: At) -> fx.Node:
    """The keys know how many tokens there are, and nothing else of them."""
    return w.add(at["x"], w.attend(at["x"], w.sized(at["text"], at["x"])), "one")


def kept_keys(w: Writer, at: At) -> fx.Node:
    k = w.layer(at["x"])
    w.keep(at["k"], k)
    one = w.add(at["x"], w.attend(at["x"], k), "one")
    v = w.layer(one)
    w.keep(at["v"], v)
    return w.add(one, v, "two")


def kept_late(w: Writer, at: At) -> fx.Node:
    """What is kept is made of the stream as it entered, and only the end of the block needs it."""
    one = w.add(at["x"], w.attend(at["x"], at["x"]))
    w.keep(at["k"], w.layer(at["x"]))
    return w.add(one, w.layer(one))


def gate_at_last(w: Writer, at: At) -> fx.Node:
    return w.add(at["x"], w.mul(w.attend(at["x"], at["x"]), w.layer(at["x"]), "gated"), "one")


NAMES: dict[str, tuple[Body, tuple[SublayerName, ...], tuple[str, ...]]] = {
    "keys of many ways": (keys_of_many_ways, ("cross", "ffn"), ("x", "one", "two")),
    "usual": (usual, ("attn", "cross", "ffn"), ("x", "one", "two", "three")),
    "adds in front": (adds_in_front, ("attn", "ffn"), ("x", "one", "two")),
    "two layers are one": (two_layers, ("ffn",), ("x", "two")),
    "two attentions are one": (two_attentions, ("attn", "ffn"), ("x", "two", "three")),
    "casts of sums": (casts_of_sums, ("attn", "cross", "ffn"), ("x", "one", "two", "")),
    "casts to what entered": (casts_to_what_entered, ("attn", "ffn"), ("x", "one", "")),
    "sums that are read both ways": (sums_read_both_ways, ("attn", "ffn"), ("x", "one", "")),
    "a cast at the end": (
        lambda w, at: w.cast(w.add(at["x"], w.attend(at["x"], at["x"]))),
        ("attn",),
        ("x", ""),
    ),
    "nothing but a cast": (lambda w, at: w.cast(at["x"]), ("ffn",), ("x", "")),
    "a gate of text": (gate_of_text, ("attn", "ffn"), ("x", "one", "two")),
    "a gate of the stream": (gate_of_the_stream, ("attn", "ffn"), ("x", "one", "two")),
    "sizes of earlier": (earlier_sizes, ("attn", "ffn"), ("x", "one", "two")),
    "other sums": (added_text, ("ffn",), ("x", "")),
    "many sums": (many_sums, ("ffn",), ("x", "one")),
    "keys of a size": (keys_of_a_size, ("cross",), ("x", "one")),
    "a bias of a size": (
        lambda w, at: w.add(at["x"], w.add(w.attend(at["x"], at["x"]), w.sized(at["text"], at["x"]))),
        ("attn",),
        ("x", ""),
    ),
    "a scaled stream": (scaled_stream, ("ffn",), ("x", "one")),
    "many keys": (many_keys, ("cross",), ("x", "")),
    "keys of text": (
        lambda w, at: w.add(at["x"], w.attend(at["x"], at["text"], v=at["x"])),
        ("cross",),
        ("x", ""),
    ),
    "written and not read": (written_and_not_read, ("attn", "ffn"), ("x", "one", "")),
    "kept keys": (kept_keys, ("attn", "ffn"), ("x", "one", "two")),
}


@pytest.mark.parametrize("how", NAMES)
def test_a_block_is_cut_between_its_adds(how: str) -> None:
    body, names, cuts = NAMES[how]
    found = chain(body, k=K, v=V)
    assert found.names == names
    values = [cut.values[X] for cut in found.cuts]
    assert [str(node) for node in values[:-1]] == list(cuts[:-1])
    assert values[-1] is found.part.results()[MADE]
    assert not any(cut.inside for cut in found.cuts)


def test_each_sublayer_writes_what_it_makes() -> None:
    found = chain(kept_keys, k=K, v=V)
    holders = found.part.holders()
    for place, buffer in enumerate((K, V)):
        nodes = found.between(found.cuts[place], found.cuts[place + 1]).nodes
        written = [n.args[0] for n in nodes if n.target is aten.copy_.default]
        assert written == [holders[buffer]]


def test_sizes_of_a_stream_as_it_was_are_told_apart() -> None:
    """They are asked of the stream as it enters the sublayer, because that is all that a piece has."""
    found = chain(earlier_sizes)
    first, last = (found.between(*ends) for ends in pairwise(found.cuts))
    assert first.sizes == {}
    assert {str(node.args[0]): stream for node, stream in last.sizes.items()} == {"x": X}
    assert found.part.holders()[X] not in last.nodes


def both_attend(w: Writer, at: At) -> tuple[fx.Node, fx.Node]:
    x = w.add(at["x"], w.attend(at["x"], at["y"]), "x1")
    y = w.add(at["y"], w.attend(at["y"], at["x"]), "y1")
    return w.add(x, w.layer(x), "x2"), w.add(y, w.layer(y), "y2")


def one_attends(w: Writer, at: At) -> tuple[fx.Node, fx.Node]:
    """The video attends to the text, which then is fed."""
    x = w.add(at["x"], w.attend(at["x"], at["y"]), "x1")
    return x, w.add(at["y"], w.layer(at["y"]), "y2")


@pytest.mark.parametrize(
    ("body", "names", "changed"),
    [(both_attend, ("attn", "ffn"), [(X, Y), (X, Y)]), (one_attends, ("cross", "ffn"), [(X,), (Y,)])],
)
def test_several_streams_are_cut_where_later_operators_read_one_value_of_each(
    body: Callable[[Writer, At], tuple[fx.Node, fx.Node]], names: tuple[str, ...], changed: list[tuple[Stream, ...]]
) -> None:
    def written(call: Callable[..., fx.Node], at: dict[str, fx.Node]) -> dict[Result, fx.Node]:
        return dict(zip((MADE, MADE_Y), body(Writer(call), at), strict=True))

    ends = {X: MADE, Y: MADE_Y}
    found = Chain(part_of({X: "x", Y: "y"}, written), ends, frozenset({X}), True)
    assert found.names == names
    assert [found.between(*ends).changed for ends in pairwise(found.cuts)] == changed


INSIDE: dict[str, tuple[Body, tuple[str, ...]]] = {
    "a gate of text": (gate_of_text, ("attended", "fed")),
    "a gate of the stream": (gate_of_the_stream, ("projected", "fed")),
    "a gate of the stream at last": (gate_at_last, ("gated",)),
    "a scaled stream": (scaled_stream, ("scaled",)),
}


@pytest.mark.parametrize("how", INSIDE)
def test_a_sublayer_is_cut_in_front_of_its_gate(how: str) -> None:
    """A gate is made of something else than the streams; two factors that are made of them stay together."""
    body, wanted = INSIDE[how]
    found = chain(body)
    for number, name in enumerate(wanted):
        cut = found.inside(number)
        assert str(cut.inside[X]) == name
        assert cut.values == found.cuts[number].values
        assert cut.nodes() == {cut.values[X], cut.inside[X]}


@pytest.mark.parametrize(
    ("body", "name"), [(two_layers, "ffn"), (two_attentions, "attn"), (lambda w, at: w.add(at["x"], 1.0), "ffn")]
)
def test_a_sublayer_of_several_adds_is_not_cut_in_front_of_a_gate(body: Body, name: str) -> None:
    with pytest.raises(Inseparable, match=f"its {name} adds more than one value to `x`"):
        chain(body).inside(0)


BESIDE = "attention and something beside it are added to the stream at once"
OTHERWISE = "`x` leaves it otherwise than by additions to what entered"
WHOLE: dict[str, tuple[Body, str]] = {
    "another value": (lambda w, at: w.mul(at["x"], at["text"]), OTHERWISE),
    "twice itself": (lambda w, at: w.add(at["x"], w.cast(at["x"])), "`x` is added to itself"),
    "a constant": (lambda w, at: 3, "it gives a constant for `x`"),
    "beside attention": (lambda w, at: w.add(at["x"], w.add(w.attend(at["x"], at["x"]), w.layer(at["x"]))), BESIDE),
    "one after the other": (
        lambda w, at: w.add(w.add(at["x"], w.attend(at["x"], at["x"])), w.layer(at["x"])), BESIDE,
    ),
    "a product beside": (
        lambda w, at: w.add(at["x"], w.add(w.mul(w.layer(at["x"]), at["text"]), w.attend(at["x"], at["x"]))), BESIDE,
    ),
    "a gate, and something beside": (
        lambda w, at: w.add(
            at["x"], w.add(w.mul(w.attend(at["x"], at["x"]), w.layer(at["x"])), w.layer(at["x"]))
        ), BESIDE,
    ),
    "a gate of both": (
        lambda w, at: w.add(
            at["x"], w.mul(w.add(w.attend(at["x"], at["x"]), w.layer(at["x"])), w.layer(at["x"]))
        ), BESIDE,
    ),
    "kept of what entered": (kept_late, BESIDE),
}  # fmt: skip


@pytest.mark.parametrize("how", WHOLE)
def test_what_cannot_be_cut_says_why(how: str) -> None:
    body, why = WHOLE[how]
    with pytest.raises(Inseparable, match=re.escape(why)):
        chain(body, k=K, v=V)


def test_without_a_row_form_only_attention_has_a_name() -> None:
    """What else mixes tokens is not known."""
    with pytest.raises(Inseparable, match="it has no row form, so it is not known what mixes its tokens"):
        chain(usual, token_wise=False)
    alone = chain(lambda w, at: w.add(at["x"], w.attend(at["x"], at["x"])), token_wise=False)
    assert alone.names == ("attn",)
