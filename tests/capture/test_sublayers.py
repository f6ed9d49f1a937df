"""Laws of blocks that are split at their sublayers: they are what was captured, in more pieces.

Identity: the pieces give the blocks' outputs, bit for bit. Rows: `partial(S)` of a piece gives the rows S of `full`.
Names: which sublayers a block has, by what attends to what. What cannot be cut is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mccompile.capture import capture, flat_inputs, run_full
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.lowering.errors import SublayerNotFound
from mccompile.lowering.regions import Split
from mccompile.lowering.split import split
from tests.capture.conftest import Specimen
from tests.capture.laws import gathered_rows, run_partial, select, selections, streams_of
from tests.zoo import tokens_of

PARTS = {
    "wan": ("attn", "cross", "ffn"), "skyreels": ("attn", "cross", "ffn"), "ltx": ("attn", "cross", "ffn"),
    "cogvideox": ("attn", "ffn"), "toy": ("attn", "ffn"),
}  # fmt: skip
TOLERANCE = 1e-12  # float64

every_family = pytest.mark.parametrize("specimen", list(PARTS), indirect=True)
every_keep = pytest.mark.parametrize("keep", ["residual", "output"])


def policy(layers: str) -> Source:
    return Source.of_text(f"policy p {{ phase a {{ compute every 2 steps }} {layers} }}")


def apart(specimen: Specimen, keep: str) -> Split:
    """The captured model with every sublayer in a region of its own."""
    layers = (f"layers blocks[*].{part} {{ keep {keep} }}" for part in PARTS[specimen.family.name])
    return split(specimen.captured, load_policy(policy(" ".join(layers))))


@every_keep
@every_family
def test_the_pieces_are_the_blocks(specimen: Specimen, keep: str) -> None:
    made = apart(specimen, keep)
    parts = PARTS[specimen.family.name]
    kept = [piece.sublayers for piece, owner in zip(made.pieces, made.owners, strict=True) if owner is not None]
    assert kept == [(part,) for part in parts] * len(specimen.captured.blocks)
    assert len(made.captured.kinds) == len(parts) * (1 if keep == "residual" else 2)
    for size in specimen.family.sizes:
        call = specimen.family.call(size, seed=4)
        with torch.no_grad():
            whole, pieces = (run_full(c, flat_inputs(c, call)) for c in (specimen.captured, made.captured))
        for one, two in zip(whole.outputs, pieces.outputs, strict=True):
            assert torch.equal(one, two)
        for site in specimen.captured.blocks:
            own = [b for i, p in enumerate(made.pieces) if p.block == site.index for b in pieces.buffers[i]]
            assert all(torch.equal(a, b) for a, b in zip(whole.buffers[site.index], own, strict=True))


@every_keep
@every_family
def test_selected_rows_of_a_piece_are_rows_of_all(specimen: Specimen, keep: str) -> None:
    captured = apart(specimen, keep).captured
    size = specimen.family.sizes[2]
    call = specimen.family.call(size, seed=5)
    inputs = flat_inputs(captured, call)
    with torch.no_grad():
        run = run_full(captured, inputs)
    for index in selections(tokens_of(size)):
        rows = gathered_rows(captured, inputs, index)
        for site in captured.blocks:
            kept = [b.clone() for b in run.buffers[site.index]]
            outputs = run_partial(captured, site, streams_of(run, site), rows, kept)
            for name, given in zip(site.streams_out, outputs, strict=True):
                expected = select(captured, name, run.values[name], rows)
                torch.testing.assert_close(given, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_only_what_decides_apart_is_cut(specimen_of: Callable[[str], Specimen]) -> None:
    captured = specimen_of("wan").captured
    made = split(captured, load_policy(policy("layers blocks[1].ffn { keep residual }")))
    assert [(p.block, p.sublayers) for p in made.pieces] == [(0, ()), (1, ("attn", "cross")), (1, ("ffn",))]
    assert made.owners == (None, None, 0)
    whole = split(captured, load_policy(policy("layers blocks[*] { keep residual }")))
    assert whole.captured is captured


REFUSED = {
    "cross": ("toy", "`layers.0` has no `cross`, but attn and ffn"),
    "attn": ("toy_convolution", "cannot be cut into sublayers: `layers.0.local` is computed over all tokens"),
}


@pytest.mark.parametrize("part", REFUSED)
def test_a_sublayer_that_is_not_there(part: str, specimen_of: Callable[[str], Specimen]) -> None:
    name, why = REFUSED[part]
    with pytest.raises(SublayerNotFound) as refused:
        split(specimen_of(name).captured, load_policy(policy(f"layers blocks[*].{part} {{ keep residual }}")))
    assert why in str(refused.value)
    assert "MC0507" in str(refused.value)


class Mixed(nn.Module):
    """Blocks whose residual adds are odd in one way each."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed = nn.Conv3d(4, 32, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList(MixedBlock(how) for _ in range(2))
        self.head = nn.Linear(32, 16)

    def forward(self, latent: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x = self.embed(latent).flatten(2).transpose(1, 2) + time[:, None, None]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class MixedBlock(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.qkv, self.out, self.mlp = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 16)).unbind(2)
        seen = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        attended = self.out(seen.transpose(1, 2).flatten(2))
        match self.how:
            case "parallel":
                return x + (attended + self.mlp(x))
            case "scaled":
                y = 2 * x + attended
                return y + self.mlp(y)
            case "twice":
                return x + attended + self.mlp(x)
            case "gated":
                y = x + attended * torch.sigmoid(self.mlp(x))
                return y + self.mlp(y)
        raise AssertionError(self.how)


ODD = {
    "parallel": "attention and something beside it are added to the stream at once",
    "scaled": "leaves it otherwise than by additions to what entered",
    "twice": "attention and something beside it are added to the stream at once",
    "gated": "",
}


@pytest.mark.parametrize("how", ODD)
def test_blocks_of_another_shape(how: str) -> None:
    torch.manual_seed(0)
    calls = [{"latent": torch.randn(1, 4, *s), "time": torch.rand(1)} for s in ((4, 6, 14), (6, 10, 22))]
    captured = capture(Mixed(how).eval(), *calls)
    asked = load_policy(policy("layers blocks[*].attn { keep output }"))
    if not ODD[how]:
        assert [p.sublayers for p in split(captured, asked).pieces[:2]] == [("attn",), ("ffn",)]
        return
    with pytest.raises(SublayerNotFound) as refused:
        split(captured, asked)
    assert ODD[how] in str(refused.value)
