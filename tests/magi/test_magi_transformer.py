"""The transformer: official keys and sizes, laws of its masks, its export, and bfloat16 beside the recording."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mccompile.capture.export import export_model
from mccompile.models.magi import MAGI_4_5B, MAGI_24B, MagiModelConfig, MagiTransformer3DModel
from mccompile.models.magi.cache import no_keys
from mccompile.models.magi.memory import count_parameters
from tests.magi.tiny import GATED, GROUPED, TINY, tiny_transformer
from tests.magi_fixture import Fixture, relative

DATA = Path(__file__).parents[1] / "data" / "magi1"


def call(
    config: MagiModelConfig, chunks: int, cached: int, height: int = 4, width: int = 6, frames: int = 2, batch: int = 1
) -> dict[str, object]:
    """Arguments for `chunks` chunks of `frames` latent frames after `cached` clean ones; h and w in tokens."""
    generator = torch.Generator().manual_seed(1000 * chunks + 10 * cached + height)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tokens = frames * height * width
    mask = noise(batch, chunks, config.caption_max_length) > 0
    mask[..., 0] = True
    keys = (batch, cached * tokens, config.num_query_groups, config.kv_channels)
    return {
        "hidden_states": noise(batch, config.latent_channels, chunks * frames, 2 * height, 2 * width),
        "timestep": torch.rand((batch, chunks), generator=generator),
        "encoder_hidden_states": noise(batch, chunks, config.caption_max_length, config.caption_channels),
        "encoder_attention_mask": mask,
        "adaln_row": torch.full((batch,), config.caption_max_length - 2),
        "kv_ranges": torch.tensor([[max(0, i - 1), cached + i + 1] for i in range(chunks)]) * tokens,
        "frame_offset": torch.tensor(cached * frames),
        "distill_span": None,
        "cached_key_values": tuple((noise(*keys), noise(*keys)) for _ in range(config.num_layers)),
        "return_kv_chunks": 0,
        "return_dict": False,
    }


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [("4.5B", MAGI_4_5B, 4_459_898_128), ("24B", MAGI_24B, 23_899_281_936)],
    ids=["4.5B", "24B"],
)
def test_keys_shapes_and_dtypes_are_the_official_ones(name: str, config: MagiModelConfig, parameters: int) -> None:
    official = json.loads((DATA / f"keys_{name}.json").read_text())
    with torch.device("meta"):
        model = MagiTransformer3DModel(**asdict(config))
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert ours == {key: entry["shape"] for key, entry in official.items()}
    kept = {k for k in ours if any(part in model._keep_in_fp32_modules for part in k.split("."))}
    assert kept == {k for k, entry in official.items() if entry["runtime_dtype"] == "torch.float32"}
    count = count_parameters(config)
    assert sum(p.numel() for p in model.parameters()) == count.total == parameters
    assert sum(p.numel() for k, p in model.named_parameters() if k in kept) == count.float32


@pytest.mark.parametrize("config", [TINY, GROUPED, GATED], ids=["plain", "grouped", "gated"])
@pytest.mark.parametrize("cached", [0, 2])
@torch.no_grad()
def test_dense_masks_are_the_ranges(config: MagiModelConfig, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, arguments = tiny_transformer(config), call(config, 3, cached, batch=2)
    ranges = model(**arguments)[0]
    as_tuple = tuple((a, b) for a, b in arguments["kv_ranges"].tolist())
    assert torch.equal(model(**{**arguments, "kv_ranges": as_tuple})[0], ranges)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert relative(model(**arguments)[0], ranges) < 2e-6


@torch.no_grad()
def test_padding_has_no_part() -> None:
    model, arguments = tiny_transformer(), call(TINY, 2, 0)
    arguments["encoder_attention_mask"][..., 40:] = False
    whole = model(**arguments)[0]
    poisoned = {**arguments, "encoder_hidden_states": arguments["encoder_hidden_states"].clone()}
    poisoned["encoder_hidden_states"][..., 40:, :] = 1e4
    assert torch.equal(model(**poisoned)[0], whole)
    short = {k: arguments[k][:, :, :40] for k in ("encoder_hidden_states", "encoder_attention_mask")}
    assert relative(model(**{**arguments, **short})[0], whole) < 2e-6


@torch.no_grad()
def test_no_attention_to_later_chunks_or_out_of_range() -> None:
    model, arguments = tiny_transformer(), call(TINY, 3, 1)
    tokens = arguments["cached_key_values"][0][0].shape[1]
    arguments["kv_ranges"] = torch.tensor([[1, 2], [1, 3], [2, 4]]) * tokens
    before = model(**arguments)[0]
    changed = {**arguments, "hidden_states": arguments["hidden_states"].clone()}
    changed["hidden_states"][:, :, 4:] += 1.0
    changed["cached_key_values"] = tuple((k + 5, v + 5) for k, v in arguments["cached_key_values"])
    after = model(**changed)[0]
    assert torch.equal(after[:, :, :4], before[:, :, :4])
    assert relative(after[:, :, 4:], before[:, :, 4:]) > 1e-3


@torch.no_grad()
def test_a_batch_is_its_items() -> None:
    model, arguments = tiny_transformer(), call(TINY, 2, 1, batch=3)
    together = model(**arguments)[0]
    for i in range(3):
        row = slice(i, i + 1)
        batched = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "adaln_row")
        one = {k: v[row] if k in batched else v for k, v in arguments.items()}
        one |= {"cached_key_values": tuple((k[row], v[row]) for k, v in arguments["cached_key_values"])}
        assert relative(model(**one)[0], together[row]) < 2e-6


@torch.no_grad()
def test_the_keys_of_earlier_chunks_may_come_from_the_cache() -> None:
    """Chunk 1 alone, with the K/V that a call of both handed out, is chunk 1 of that call."""
    model, both = tiny_transformer(), call(TINY, 2, 0)
    tokens = 2 * 4 * 6
    both["kv_ranges"] = torch.tensor([[0, 1], [0, 2]]) * tokens
    sample, kept = model(**{**both, "return_kv_chunks": 1})
    second = {k: both[k][:, 1:] for k in ("timestep", "encoder_hidden_states", "encoder_attention_mask")}
    second |= {"hidden_states": both["hidden_states"][:, :, 2:], "frame_offset": torch.tensor(2)}
    second |= {"kv_ranges": ((0, 2 * tokens),), "cached_key_values": kept}
    assert relative(model(**{**both, **second})[0], sample[:, :, 2:]) < 2e-6


@torch.no_grad()
def test_no_cache_is_a_cache_of_no_rows() -> None:
    model, arguments = tiny_transformer(), call(TINY, 2, 0)
    empty = no_keys(TINY, 1, arguments["hidden_states"], torch.float32)
    none = model(**{**arguments, "cached_key_values": None})[0]
    assert torch.equal(model(**{**arguments, "cached_key_values": empty})[0], none)


@torch.no_grad()
def test_one_export_serves_every_size_and_equals_eager() -> None:
    model = tiny_transformer(GROUPED)
    first, second = call(GROUPED, 2, 1), call(GROUPED, 3, 2, height=6, width=5, frames=3)
    module = export_model(model, first, second).module
    others = (call(GROUPED, 4, 1, height=3, width=7), call(GROUPED, 1, 3), call(GROUPED, 2, 0))
    for arguments in (first, second, *others):
        given = {k: v for k, v in arguments.items() if v is not None}
        assert relative(module(**given)[0], model(**arguments)[0]) < 2e-6


@torch.no_grad()
def test_the_distilled_step_size_matters_and_exports() -> None:
    model = tiny_transformer()
    calls = [{**call(TINY, n, 1, frames=n), "distill_span": torch.tensor([4.0])} for n in (2, 3)]
    module = export_model(model, *calls).module
    arguments = {**calls[0], "distill_span": torch.tensor([32.0])}
    assert relative(model(**arguments)[0], model(**calls[0])[0]) > 1e-3
    assert relative(module(**arguments)[0], model(**arguments)[0]) < 2e-6


@torch.no_grad()
def test_bfloat16_is_as_near_as_the_official_run() -> None:
    """Both round at the same places, so they are nearer to each other than either is to float32."""
    fixture = Fixture.read(DATA)
    model = fixture.model("A")
    for name, parameter in model.named_parameters():
        if not any(part in model._keep_in_fp32_modules for part in name.split(".")):
            parameter.data = parameter.data.bfloat16()
    captions, masks = fixture.text()
    ours = model(
        hidden_states=fixture.tensors["in.x"],
        timestep=fixture.tensors["in.t3"],
        encoder_hidden_states=captions[None],
        encoder_attention_mask=masks[None],
        adaln_row=torch.tensor([798]),
        kv_ranges=fixture.tensors["in.kv_range3"].long(),
        frame_offset=torch.tensor(0),
    ).sample
    theirs, exact = fixture.tensors["A.bf16.three.out_cond"], fixture.tensors["A.three.out_cond"]
    assert relative(ours, theirs) < relative(theirs, exact)
    assert relative(ours, exact) < 1.2 * relative(theirs, exact)


def test_loading_in_bfloat16_keeps_the_named_parts(tmp_path: Path) -> None:
    tiny_transformer().save_pretrained(tmp_path)
    model = MagiTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert dtypes["x_embedder.weight"] == dtypes["rope.bands"] == torch.float32
    layer = "videodit_blocks.layers.0.self_attention."
    assert dtypes[layer + "q_layernorm.weight"] == torch.float32
    assert dtypes[layer + "q_layernorm_xattn.weight"] == dtypes[layer + "linear_qkv.q.weight"] == torch.bfloat16
    assert model.compute_dtype == torch.bfloat16


@pytest.mark.parametrize("config", [TINY, replace(TINY, num_query_groups=4)], ids=["8", "4"])
@torch.no_grad()
def test_fewer_groups_than_the_joint_layout(config: MagiModelConfig) -> None:
    """The layout of the joint projection is 8 groups whatever the number of key heads."""
    assert tiny_transformer(config)(**call(config, 2, 1))[0].isfinite().all()
