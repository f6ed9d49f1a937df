"""Each labelling rule against numbers: where it labels an axis, rows of the result are the result of the rows.

A rule that labels nothing of a value that changes with the tokens, or a mixing operator that is not refused,
fails too: the law is checked on every case, and every token-mixing case must be refused.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture.facts import measure
from mccompile.capture.labels import label
from mccompile.capture.rows import Labels, RowSpans, any_video, between, has_video, joined, key, other, total, video
from mccompile.capture.scope import Refused, Scope
from mccompile.capture.template import cut

Function = Callable[[torch.Tensor], torch.Tensor]
WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEXT = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

TOKEN_WISE: dict[str, Function] = {
    "linear": lambda x: F.linear(x, WEIGHT),
    "matmul": lambda x: x @ WEIGHT,
    "addmm": lambda x: torch.addmm(WEIGHT[0], x[0], WEIGHT),
    "einsum": lambda x: torch.einsum("bld,ed->bel", x, WEIGHT),
    "layer_norm": lambda x: F.layer_norm(x, [8]),
    "rms_norm": lambda x: F.rms_norm(x, [8]),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "sum": lambda x: x.sum(2),
    "softmax": lambda x: x.softmax(-1),
    "glu": lambda x: F.glu(x),
    "cumsum": lambda x: x.cumsum(-1),
    "activations": lambda x: F.silu(x) * F.gelu(x) + F.hardswish(x) - torch.exp2(x).sigmoid(),
    "powers": lambda x: x**2 + 2**x + x.abs().rsqrt(),
    "where": lambda x: torch.where(x > 0, x, 1 - x),
    "masked": lambda x: x.masked_fill(x > 0, 1.0),
    "rotary": lambda x: torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * 1j).flatten(2),
    "strided writes": lambda x: _strided(x),
    "heads": lambda x: x.unflatten(-1, (2, 4)).permute(0, 2, 1, 3),
    "movedim": lambda x: x.movedim(1, 2).swapaxes(0, 1),
    "mT": lambda x: x.mT,
    "squeeze": lambda x: x[:1].unsqueeze(0).squeeze(1).squeeze(),
    "select": lambda x: x.select(2, 3),
    "unbind": lambda x: x.unbind(-1)[2] + x.unflatten(-1, (4, 2)).unbind(3)[1][..., 0],
    "chunk": lambda x: x.chunk(2, -1)[1] + x.split([4, 4], -1)[0],
    "narrow": lambda x: x.narrow(2, 1, 3),
    "index_select": lambda x: x.index_select(2, torch.tensor([5, 0])),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 4, -1, -1),
    "repeat": lambda x: x.repeat(2, 1, 3).tile((1, 1, 2)).repeat_interleave(2, -1),
    "pad channels": lambda x: F.pad(x, (1, 2)),
    "text in front": lambda x: torch.cat([TEXT, x], 1)[:, 3:],
    "text behind": lambda x: torch.cat([x, TEXT], 1)[:, :-3],
    "padded": lambda x: F.pad(x, (0, 0, 2, 0))[:, 2:],
    "cross attention": lambda x: F.scaled_dot_product_attention(x, TEXT, TEXT),
}
MIXING: dict[str, tuple[Function, str]] = {
    "mean": (lambda x: x.mean(1), "reduces over the token axis"),
    "mean of all": (lambda x: x.mean(), "reduces over the token axis"),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=1), "reduces over the token axis"),
    "softmax": (lambda x: x.softmax(1), "softmax over the token axis"),
    "cumsum": (lambda x: x.cumsum(1), "over the token axis"),
    "layer_norm": (lambda x: F.layer_norm(x.mT, [x.shape[1]]), "normalises over the token axis"),
    "group_norm": (lambda x: F.group_norm(x.mT, 2), "normalises over the token axis"),
    "contraction": (lambda x: x.mT @ x, "contracts the token axis"),
    "einsum": (lambda x: torch.einsum("bld,ble->bde", x, x), "contracts the token axis"),
    "conv": (lambda x: F.conv1d(x.mT, WEIGHT[:, :, None]), "convolution over the token axis"),
    "flip": (lambda x: x.flip(1), "no rule"),
    "roll": (lambda x: x.roll(1, 1), "no rule"),
    "one token": (lambda x: x[:, 0], "picks one token"),
    "some tokens": (lambda x: x.narrow(1, 2, 3), "picks some of the tokens"),
    "every second": (lambda x: x[:, ::2], "takes every n-th token"),
    "repeat": (lambda x: x.repeat(1, 2, 1), "repeats the tokens"),
    "split axis": (lambda x: x.unflatten(1, (-1, 2)), "splits or merges the token axis"),
    "merge axis": (lambda x: x.flatten(1), "splits or merges the token axis"),
    "other rows": (lambda x: torch.cat([TEXT, x], 1) + F.pad(x, (0, 0, 0, 3)), "different rows meet"),
}


def _strided(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    out[..., ::2] = -x[..., 1::2]
    out[..., 1::2] = x[..., ::2]
    return out * 2


class _Whole(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def labels_of(function: Function) -> Labels:
    """Labels of the function's result for x [2, tokens, 8]."""
    return labelled(function)[0]


def labelled(function: Function) -> tuple[Labels, Scope]:
    """The labels of the function's result, and all that was found of the operators on the way."""
    inputs = [torch.randn(2, n, 8, dtype=torch.float64) for n in (6, 10)]
    shapes = {"x": {1: torch.export.Dim.DYNAMIC}}
    with torch.no_grad():
        module = torch.export.export(_Whole(function), (inputs[0],), dynamic_shapes=shapes, strict=False).module()
    for node in [n for n in module.graph.nodes if n.op == "call_module" or "_assert" in str(n.target)]:
        module.graph.erase_node(node)
    facts = measure(module, inputs[:1], inputs[1:])
    nodes = [n for n in module.graph.nodes if n.op == "call_function"]
    (result,) = module.graph.output_node().all_input_nodes
    template = cut("block", nodes, set(), {result}, facts)
    (seed,) = [p for p, captured in template.values.items() if captured.name == "x"]
    scope = label(template, {seed: {1: (video((6, 10)),)}})
    return scope.of(next(iter(template.outputs))), scope


@pytest.mark.parametrize("name", list(TOKEN_WISE))
def test_rows_of_the_result_are_the_result_of_the_rows(name: str) -> None:
    function = TOKEN_WISE[name]
    labels = labels_of(function)
    assert [key(rows) for rows in labels if rows is not None] == ["video"]
    (axis,) = [i for i, rows in enumerate(labels) if has_video(rows)]
    x = torch.randn(2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    chosen = torch.tensor([7, 0, 4])
    expected = function(x).index_select(axis, chosen)
    torch.testing.assert_close(function(x[:, chosen]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(MIXING))
def test_what_mixes_tokens_is_computed_over_all_of_them(name: str) -> None:
    function, reason = MIXING[name]
    labels, scope = labelled(function)
    assert not any_video(labels)
    assert any(reason in refused.reason for refused in scope.mixing.values())
    assert scope.kept


def test_tokens_of_two_streams_join_and_parts_in_another_order_do_not() -> None:
    (_, rows, _), scope = labelled(lambda x: torch.cat([x, x], 1))
    assert rows is not None
    assert (key(rows), scope.mixing) == ("video+video", {})
    with pytest.raises(Refused, match="joins parts of the video tokens in another order"):
        labelled(lambda x: torch.cat([x[:, 3:], x[:, :3]], 1))


def test_parts_of_the_tokens_are_named_and_join_again() -> None:
    rows: RowSpans = joined([other((3, 3)), (video((6, 10)),), other((2, 2))])
    assert key(rows) == "3+video+2"
    assert total(rows) == (11, 15)
    head, tail = between(rows, (0, 0), (5, 6)), between(rows, (5, 6), (11, 15))
    assert key(head) == "3+video[0:2|3]"
    assert key(tail) == "video[2|3:6|10]+2"
    assert joined([head, tail]) == rows
    assert key(joined([tail, head])) == "video[2|3:6|10]+5+video[0:2|3]"
    assert not any_video((between(rows, (0, 0), (3, 3)),))
