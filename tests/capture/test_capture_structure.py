"""What a capture says about a model: ports, sources, grid, refusals, forms that can be exported again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import fx
from torch.export import Dim

from mccompile.capture import OneFrame, TokenGrid, ToldGrid, block_weights, capture, flat_inputs, split_prelude
from mccompile.capture.part import Buffer, Shared
from tests.capture.conftest import Specimen
from tests.capture.laws import gathered_rows, run_partial, select, selections, streams_of
from tests.zoo import zoo

Specimens = Callable[[str], Specimen]


def test_ports_say_what_values_depend_on(specimen_of: Specimens) -> None:
    ports = specimen_of("skyreels").captured.shared
    by_inputs = {tuple(sorted(p.depends)): [] for p in ports}
    for port in ports:
        by_inputs[tuple(sorted(port.depends))].append((port.token_axis, port.rows))
    assert by_inputs[()] == [(1, "video"), (1, "video"), (2, "video")]  # rotary tables, mask
    assert (2, "video") in by_inputs[("timestep",)]  # modulation of the blocks
    assert by_inputs[("encoder_hidden_states",)] == [(None, "")]


def test_joint_rows_have_keys(specimen_of: Specimens) -> None:
    assert specimen_of("hunyuan").captured.row_keys == ("video+11",)
    assert specimen_of("flux").captured.row_keys == ("11+video",)
    assert specimen_of("wan").captured.row_keys == ("video",)
    assert specimen_of("hunyuan_first_frame").captured.row_keys == ("video+11", "video")
    (history,) = specimen_of("helios").captured.row_keys
    assert re.fullmatch(r"\d+\|\d+\+video", history)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("wan", TokenGrid("hidden_states", (2, 3, 4), (1, 2, 2))),
        ("cogvideox", TokenGrid("hidden_states", (1, 3, 4), (1, 2, 2))),
        ("toy", TokenGrid("latent", (2, 3, 4), (1, 2, 2))),
        ("helios", TokenGrid("hidden_states", (2, 3, 4), (1, 2, 2))),
        ("flux", OneFrame("hidden_states", 1, "img_ids")),
        ("ltx", ToldGrid("hidden_states", ("num_frames", "height", "width"))),
    ],
)
def test_the_grid_is_found(name: str, grid: TokenGrid | OneFrame | ToldGrid, specimen_of: Specimens) -> None:
    captured = specimen_of(name).captured
    assert captured.grid == grid
    assert "grid" not in {r.site for r in captured.refusals}


def test_modulation_is_gathered_per_frame(specimen_of: Specimens) -> None:
    specimen = specimen_of("skyreels")
    captured = specimen.captured
    sources = {p.name: p for p in captured.sources}
    assert sorted(p.rows for p in sources.values() if p.rows) == ["frame", "frame", "video", "video"]
    size = specimen.family.sizes[2]
    inputs = flat_inputs(captured, specimen.family.call(size))
    values = split_prelude(captured, [p.name for p in captured.sources])(*inputs)
    tokens = size[0] * (size[1] // 2) * (size[2] // 2)
    for port, value in zip(captured.sources, values, strict=True):
        if port.rows == "frame":
            assert value.shape[port.token_axis] == size[0]
            assert tokens not in value.shape


def test_tokens_of_the_mask_are_never_squared_in_gather(specimen_of: Specimens) -> None:
    captured = specimen_of("skyreels").captured
    specimen = specimen_of("skyreels")
    inputs = flat_inputs(captured, specimen.family.call(specimen.family.sizes[1]))
    values = split_prelude(captured, [p.name for p in captured.sources])(*inputs)
    largest = max(v.numel() for v in values if isinstance(v, torch.Tensor))
    tokens = specimen.run(specimen.family.call(specimen.family.sizes[1])).values[captured.streams[0].name].shape[1]
    assert largest < tokens * tokens


def test_split_prelude_computes_just_what_is_named(specimen_of: Specimens) -> None:
    specimen = specimen_of("skyreels")
    captured = specimen.captured
    call = specimen.family.call(specimen.family.sizes[0])
    inputs, run = flat_inputs(captured, call), specimen.run(call)
    for port in captured.shared:
        alone = split_prelude(captured, [port.name])
        assert torch.equal(alone(*inputs)[0], run.values[port.name])
        read = {n.name for n in alone.graph.nodes if n.op == "placeholder" and n.users}
        spoilt = [
            x * 0 + 7 if isinstance(x, torch.Tensor) and name not in port.depends else x
            for name, x in zip(captured.inputs, inputs, strict=True)
        ]
        assert port.depends <= read
        assert torch.equal(alone(*spoilt)[0], run.values[port.name])


def test_attentions_are_described(specimen_of: Specimens) -> None:
    captured = specimen_of("skyreels").captured
    mask = next(p.name for p in captured.shared if p.token_axis == 2 and not p.depends)
    for form in (captured.kinds[0].full, captured.kinds[0].partial):
        (found,) = form.attentions
        assert (found.keys, found.values, found.mask) == (Buffer("attn1.k0"), Buffer("attn1.v0"), Shared(mask))
        assert found.path == "blocks.0.attn1"
        (node,) = [n for n in form.graph.nodes if n.name == found.node]
        assert node.target is torch.ops.aten.scaled_dot_product_attention.default
        assert node.meta["attention"] == {"buffers": ("attn1.k0", "attn1.v0")}


def test_every_grid_says_where_its_tokens_lie(specimen_of: Specimens) -> None:
    found = {name: specimen_of(name).captured.grid for name in ("wan", "flux", "ltx")}
    assert {name: (grid.axes, grid.patch) for name, grid in found.items() if grid is not None} == {
        "wan": ((2, 3, 4), (1, 2, 2)), "flux": ((1,), (1, 1, 1)), "ltx": ((1,), (1, 1, 1)),
    }  # fmt: skip


def test_a_convolution_over_tokens_runs_over_all_of_them(specimen_of: Specimens) -> None:
    captured = specimen_of("toy_convolution").captured
    (kind,) = captured.kinds
    assert kind.partial is not None
    assert [buffer.name for buffer in kind.buffers] == ["attention.k0", "attention.v0", "block.all0"]
    (mixing,) = kind.mixing
    assert mixing.site == "layers.0.local"
    assert "convolution over the token axis" in mixing.reason
    assert captured.grid is not None


@pytest.mark.parametrize("name", ["cogvideox", "toy"])
def test_batches_share_the_selection(name: str) -> None:
    family = zoo(name)
    model = family.model()
    captured = capture(model, *(family.call(s, batch=2) for s in family.sizes[:2]))
    specimen = Specimen(family, model, captured)
    _rows_hold(specimen, family.call(family.sizes[2], batch=2), 1e-12)


@pytest.mark.parametrize("name", ["wan"])
def test_rows_hold_in_bfloat16(name: str) -> None:
    family = zoo(name)
    model = family.model(torch.bfloat16)
    captured = capture(model, *(family.call(s, dtype=torch.bfloat16) for s in family.sizes[:2]))
    assert all(kind.partial is not None for kind in captured.kinds)
    _rows_hold(Specimen(family, model, captured), family.call(family.sizes[2], dtype=torch.bfloat16), 0.06)


def _rows_hold(specimen: Specimen, call: dict[str, object], tolerance: float) -> None:
    captured, run = specimen.captured, specimen.run(call)
    inputs = flat_inputs(captured, call)
    index = selections(run.values[captured.streams[0].name].shape[1])[2]
    rows = gathered_rows(captured, inputs, index)
    for site in captured.blocks:
        kept = [b.clone() for b in run.buffers[site.index]]
        outputs = run_partial(captured, site, streams_of(run, site), rows, kept)
        for name, given in zip(site.streams_out, outputs, strict=True):
            expected = select(captured, name, run.values[name], rows)
            torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


def _dynamic(operands: Sequence[object], count: int, tokens: int) -> tuple[object, ...]:
    """dynamic_shapes of a partial block: axes of the selection and of all tokens."""
    rows, every = Dim("n", min=2), Dim("tokens", min=2)
    names = {count: rows, tokens: every}
    return tuple({i: names[d] for i, d in enumerate(x.shape) if d in names} for x in operands)


@pytest.mark.parametrize("name", ["wan", "skyreels"])
def test_a_partial_block_can_be_exported_again(name: str, specimen_of: Specimens) -> None:
    specimen = specimen_of(name)
    captured, site = specimen.captured, specimen.captured.blocks[1]
    exported: fx.GraphModule | None = None
    for size, count in ((specimen.family.sizes[0], 13), (specimen.family.sizes[1], 29)):
        call = specimen.family.call(size, seed=8)
        run, inputs = specimen.run(call), flat_inputs(captured, call)
        tokens = run.values[captured.streams[0].name].shape[1]
        rows = gathered_rows(captured, inputs, torch.randperm(tokens, generator=torch.manual_seed(9))[:count])
        streams = [select(captured, n, run.values[n], rows) for n in site.streams_in]
        kept = [b.clone() for b in run.buffers[1]]
        operands = [*streams, *(rows[n] for n in site.shared), *(rows[k] for k in captured.row_keys), *kept]
        operands += [w.detach() for w in block_weights(captured, site)]
        if exported is None:
            shapes = _dynamic(operands, count, tokens)
            kind = captured.kinds[site.kind]
            exported = torch.export.export(
                kind.partial.module, tuple(operands), dynamic_shapes=shapes, strict=False
            ).module()
        (given,) = exported(*operands)
        expected = select(captured, site.streams_out[0], run.values[site.streams_out[0]], rows)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)
