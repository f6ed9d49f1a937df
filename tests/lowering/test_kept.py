"""The forms in which tensors are kept: what they cost, what they round, and that nothing overflows silently."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from mccompile import ir
from mccompile.capture.part import Buffer, Hoisted, Part, Positions, Shared, Stream
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Rewritten
from mccompile.lowering.hoist import hoist
from mccompile.lowering.kept import decode, encode, keep_encoded, kept_form
from mccompile.lowering.strip import stripped

aten = torch.ops.aten
KEPT: tuple[ir.KeptDtype, ...] = ("float32", "bfloat16", "float16", "float8")


def there_and_back(value: torch.Tensor, kept: ir.KeptDtype) -> torch.Tensor:
    stored = encode(value, kept)
    shape, dtype = kept_form(value.shape, value.dtype, kept)
    assert (stored.shape, stored.dtype) == (shape, dtype)
    return decode(stored, kept, value)


@given(st.integers(0, 10**6), st.floats(-36, 38), st.sampled_from((torch.float32, torch.bfloat16)))
def test_float8_is_near_and_never_overflows(seed: int, power: float, dtype: torch.dtype) -> None:
    """Rows of any magnitude, of outliers too: 2**-4 of each value, or 2**-17 of its row's largest."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(2, 3, 5, 16, generator=generator).clamp(-3, 3) * 10.0**power / 3
    value[..., 0, 3] *= 2.0**-12
    value = value.to(dtype)
    back = there_and_back(value, "float8")
    assert back.dtype == dtype
    assert back.isfinite().all()
    wide = value.double()
    largest = wide.abs().amax(-1, keepdim=True)
    allowed = torch.maximum(wide.abs() * 2**-3.9, largest * 2.0**-17) + 1e-37
    assert ((back.double() - wide).abs() <= allowed).all()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_so_and_spoils_its_row_alone(bad: float) -> None:
    value = torch.ones(2, 4)
    value[1, 2] = bad
    back = there_and_back(value, "float8")
    assert torch.equal(back[0], value[0])
    assert not back[1, 2].isfinite()


@pytest.mark.parametrize("kept", KEPT)
def test_zeros_are_zeros_and_rows_are_kept_alone(kept: ir.KeptDtype) -> None:
    value = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    value[:, :, 2] = 0
    back = there_and_back(value, kept)
    assert torch.equal(back[:, :, 2], value[:, :, 2])
    rows = torch.tensor([4, 1])
    shape, dtype = kept_form(value.shape, value.dtype, kept)
    buffer = torch.zeros(shape, dtype=dtype).index_copy_(2, rows, encode(value[:, :, rows], kept))
    read = decode(buffer, kept, value)
    assert torch.equal(read[:, :, rows], back[:, :, rows])
    assert not read[:, :, [0, 2, 3, 5]].any()


@pytest.mark.parametrize("kept", ["model", "auto"])
def test_the_models_dtype_touches_nothing(kept: ir.KeptDtype) -> None:
    value = torch.randn(3, 4)
    assert encode(value, kept) is value
    assert decode(value, kept, value) is value
    assert all(isinstance(keep_encoded(part, kept), Refusal) for part in (attending(), allocation(), negated()))


def test_what_is_not_kept_stays_as_it_is_computed() -> None:
    """Attention to values of this call alone, whole ones and such as were put together of rows."""
    graph = fx.Graph()
    q, k, rows = (graph.placeholder(n) for n in ("q", "k", "rows"))
    joined = graph.call_function(aten.index_copy_.default, (graph.call_function(aten.neg.default, (q,)), 2, rows, k))
    graph.output((graph.call_function(aten.scaled_dot_product_attention.default, (q, k, joined)),))
    takes = (Stream("q"), Stream("k"), Positions("video"))
    part = Part(fx.GraphModule(torch.nn.Module(), graph), takes, (Stream("made"),))
    assert all(isinstance(keep_encoded(part, kept), Refusal) for kept in KEPT)


def rewritten(part: Part, kept: ir.KeptDtype) -> Part:
    result = keep_encoded(part, kept)
    assert isinstance(result, Rewritten)
    assert result.made == ()
    return result.part


TEXT = (Hoisted(0, True), Hoisted(1, True))
BUFFERS = (Buffer("k"), Buffer("v"))


def attending() -> Part:
    """(q, k, v, rows, k_buffer, v_buffer, text_k, text_v) -> attention to the buffers, then to the text."""
    graph = fx.Graph()
    q, k, v, rows, kb, vb, tk, tv = (graph.placeholder(n) for n in ("q", "k", "v", "rows", "kb", "vb", "tk", "tv"))
    kept = [graph.call_function(aten.index_copy_.default, (b, 2, rows, x)) for b, x in ((kb, k), (vb, v))]
    sdpa = aten.scaled_dot_product_attention.default
    own = graph.call_function(sdpa, (q, *kept))
    graph.output((graph.call_function(sdpa, (own, tk, tv)),))
    takes = (Stream("q"), Stream("k"), Stream("v"), Positions("video"), *BUFFERS, *TEXT)
    return Part(fx.GraphModule(torch.nn.Module(), graph), takes, (Stream("made"),))


def negated() -> Part:
    """What a block takes from the prompt: keys and values that are minus two shared values."""
    graph = fx.Graph()
    text = [graph.placeholder(n) for n in ("k", "v")]
    graph.output(tuple(graph.call_function(aten.neg.default, (t,)) for t in text))
    return Part(fx.GraphModule(torch.nn.Module(), graph), (Shared("k"), Shared("v")), TEXT)


def allocation() -> Part:
    graph = fx.Graph()
    like = graph.placeholder("like")
    count = graph.call_function(aten.sym_size.int, (like, 1))
    made = graph.call_function(aten.new_zeros.default, (like, [1, 2, count, 16]), {"dtype": torch.float32})
    graph.output((made,))
    return Part(fx.GraphModule(torch.nn.Module(), graph), (Stream("like"),), (Buffer("k"),))


@pytest.mark.parametrize("kept", KEPT)
def test_graphs_write_and_read_the_kept_form(kept: ir.KeptDtype) -> None:
    """The rewritten block on kept tensors gives what the block gives on tensors that went there and back."""
    block = attending()
    rest, lasting = rewritten(block, kept), rewritten(negated(), kept)
    (empty,) = rewritten(allocation(), kept)(torch.zeros(1, 6, 3))
    assert (empty.shape, empty.dtype) == kept_form(torch.Size((1, 2, 6, 16)), torch.float32, kept)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 3, 16, generator=generator) for _ in range(3))
    tk, tv = (torch.randn(1, 2, 4, 16, generator=generator) for _ in range(2))
    rows, buffers = torch.tensor([0, 3, 5]), (empty, empty.clone())
    (found,) = rest.module(q, k, v, rows, *buffers, *lasting.module(tk, tv))
    plain = (torch.zeros(1, 2, 6, 16), torch.zeros(1, 2, 6, 16))
    rounded = (there_and_back(t, kept) for t in (k, v))
    (wanted,) = block.module(q, *rounded, rows, *plain, *(there_and_back(-t, kept) for t in (tk, tv)))
    assert torch.equal(found, wanted)
    assert torch.equal(decode(buffers[0], kept, q), plain[0])


def test_what_is_hoisted_but_read_elsewhere_stays_as_it_is() -> None:
    """A value of the prompt that is a key and something else besides keeps its dtype: the other reader wants it."""
    graph = fx.Graph()
    q, k, v = (graph.placeholder(n) for n in ("q", "k", "v"))
    key, value = (graph.call_function(aten.neg.default, (t,)) for t in (k, v))
    made = graph.call_function(aten.scaled_dot_product_attention.default, (q, key, value))
    graph.output((made, graph.call_function(aten.add.Tensor, (q, key))))
    takes = (Stream("q"), Shared("k"), Shared("v"))
    block = Part(fx.GraphModule(torch.nn.Module(), graph), takes, (Stream("made"), Stream("more")))
    apart = hoist(block, frozenset(takes[1:]))
    assert isinstance(apart, Rewritten)
    (once,) = apart.made
    assert once.gives == (Hoisted(0, False), Hoisted(1, True))
    values = rewritten(once, "bfloat16")(torch.ones(1, 2), torch.ones(1, 2))
    assert [t.dtype for t in values] == [torch.float32, torch.bfloat16]
    rest = stripped(rewritten(apart.part, "bfloat16"))
    key_as_it_is, value_kept = (torch.full((1, 1, 2, 4), -1.0, dtype=d) for d in (torch.float32, torch.bfloat16))
    given, wanted = torch.ones(1, 1, 2, 4), block.module(*(torch.ones(1, 1, 2, 4) for _ in range(3)))
    assert all(map(torch.equal, rest.module(given, key_as_it_is, value_kept), wanted))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_row_of_the_smallest_numbers_keeps_them(sign: float) -> None:
    """Its scale is the smallest power that is a normal number; what float8 can hold under it comes back as it was."""
    value = sign * torch.tensor([[2.0**-135, 3 * 2.0**-135], [2.0**-120, 2.0**-121]])
    assert torch.equal(there_and_back(value, "float8"), value)
    assert encode(value, "float8")[0, -1] == 1


@pytest.mark.parametrize("largest", [448.0, 449.0, 3.0e38, 1.0, 1.75 * 2.0**8])
def test_the_scale_of_a_row_is_the_smallest_under_which_it_fits(largest: float) -> None:
    stored = encode(torch.tensor([[largest, 0.0]]), "float8")
    power = int(stored[0, -1]) - 127
    assert largest * 2.0**-power <= 448.0 < largest * 2.0 ** (1 - power)


def allocating(last: int | None) -> Part:
    """Buffers whose rows have a known width, or one that varies."""
    graph = fx.Graph()
    like = graph.placeholder("like")
    width = graph.call_function(aten.sym_size.int, (like, 1)) if last is None else last
    made = graph.call_function(aten.new_zeros.default, (like, [2, 5, width]), {"pin_memory": False})
    graph.output((made,))
    return Part(fx.GraphModule(torch.nn.Module(), graph), (Stream("like"),), (Buffer("k"),))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("last", [7, None])
def test_buffers_of_any_width_are_allocated_in_the_kept_form(kept: ir.KeptDtype, last: int | None) -> None:
    (made,) = rewritten(allocating(last), kept)(torch.zeros(3, 7))
    assert (made.shape, made.dtype) == kept_form(torch.Size((2, 5, 7)), torch.float32, kept)


def test_operators_that_mix_tokens_read_what_is_kept_as_well() -> None:
    """A convolution along the tokens of a buffer, twice: each reads the values that went there and back."""
    graph = fx.Graph()
    k, rows, buffer = (graph.placeholder(n) for n in ("k", "rows", "buffer"))
    written = graph.call_function(aten.index_copy_.default, (buffer, 1, rows, k))
    graph.output(
        (graph.call_function(aten.cumsum.default, (written, 1)), graph.call_function(aten.neg.default, (written,)))
    )
    takes = (Stream("k"), Positions("video"), Buffer("k"))
    mixing = Part(fx.GraphModule(torch.nn.Module(), graph), takes, (Stream("made"), Stream("more")))
    value, at = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0])
    for kept in KEPT:
        shape, dtype = kept_form(torch.Size((1, 3, 16)), torch.float32, kept)
        buffer_kept = torch.zeros(shape, dtype=dtype)
        found = rewritten(mixing, kept)(value, at, buffer_kept)
        wanted = mixing(there_and_back(value, kept), at, torch.zeros(1, 3, 16))
        assert all(map(torch.equal, found, wanted))
        assert torch.equal(buffer_kept[:, at], encode(value, kept))


def test_attention_to_other_values_is_left_alone() -> None:
    """Keys that are kept beside values that are not: only what is kept is read in another form."""
    graph = fx.Graph()
    q, k, rows, buffer, other = (graph.placeholder(n) for n in ("q", "k", "rows", "buffer", "other"))
    written = graph.call_function(aten.index_copy_.default, (buffer, 2, rows, k))
    graph.output((graph.call_function(aten.scaled_dot_product_attention.default, (q, other, written)),))
    takes = (Stream("q"), Stream("k"), Positions("video"), Buffer("v"), Hoisted(0, False))
    part = Part(fx.GraphModule(torch.nn.Module(), graph), takes, (Stream("made"),))
    q_, k_, other_ = (torch.randn(1, 1, 2, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))
    at, empty = torch.tensor([0, 1]), torch.zeros(1, 1, 2, 16, dtype=torch.bfloat16)
    (found,) = rewritten(part, "bfloat16")(q_, k_, at, empty, other_)
    (wanted,) = part(q_, there_and_back(k_, "bfloat16"), at, torch.zeros(1, 1, 2, 16), other_)
    assert torch.equal(found, wanted)
