"""Official checkpoints: read strictly, sharded or not; what does not fit is reported; other layouts are refused."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mccompile.models.magi import (
    MagiCheckpointError,
    MagiConfigError,
    MagiLayoutError,
    MagiPipeline,
    MagiSpecialTokens,
)
from mccompile.models.magi.checkpoint import compare_keys, load_transformer, load_vae
from mccompile.models.magi.config import read_official_config
from mccompile.models.magi.diffusers_names import RENAMED, from_diffusers, to_diffusers
from tests.magi.tiny import GROUPED, TINY, tiny_text, tiny_transformer, tiny_vae

LAYER = "videodit_blocks.layers.0."


def state() -> dict[str, Tensor]:
    return {k: v.to(torch.bfloat16).contiguous() for k, v in tiny_transformer().state_dict().items()}


def write_shards(folder: Path, tensors: dict[str, Tensor], count: int = 3) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    names, index = sorted(tensors), {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = names[i::count]
        save_file({n: tensors[n] for n in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sorted(folder.glob("*.safetensors"))


def same(a: torch.nn.Module, tensors: dict[str, Tensor]) -> bool:
    return all(torch.equal(v.to(torch.bfloat16), tensors[k]) for k, v in a.state_dict().items())


def test_one_file_shards_and_the_official_folders_hold_the_same(tmp_path: Path) -> None:
    tensors = state()
    save_file(tensors, tmp_path / "model.safetensors")
    write_shards(tmp_path / "base" / "inference_weight", tensors)
    write_shards(tmp_path / "distill" / "inference_weight.distill", tensors, 2)
    loaded = [
        load_transformer(tmp_path / "model.safetensors", TINY),
        load_transformer(tmp_path, TINY),
        load_transformer(tmp_path / "base", TINY),
        load_transformer(tmp_path / "base" / "inference_weight", TINY),
        load_transformer(tmp_path / "distill", TINY, distilled=True),
    ]
    assert all(same(model, tensors) for model in loaded)
    dtypes = {k: p.dtype for k, p in loaded[2].named_parameters()}
    assert dtypes["rope.bands"] == torch.float32
    assert dtypes[LAYER + "mlp.linear_fc1.weight"] == torch.bfloat16
    assert not any(p.requires_grad for p in loaded[0].parameters())


def test_the_report_names_what_differs(tmp_path: Path) -> None:
    tensors = state()
    del tensors["rope.bands"], tensors[LAYER + "mlp.layer_norm.bias"]
    tensors["extra.weight"] = torch.zeros(1)
    tensors["x_embedder.weight"] = torch.zeros(3, 16, 1, 2, 2)
    report = compare_keys(tiny_transformer(), {k: v.shape for k, v in tensors.items()})
    assert set(report.missing) == {"rope.bands", LAYER + "mlp.layer_norm.bias"}
    assert report.unexpected == ("extra.weight",)
    assert report.misshaped == (("x_embedder.weight", (64, 16, 1, 2, 2), (3, 16, 1, 2, 2)),)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(MagiCheckpointError) as caught:
        load_transformer(tmp_path, TINY)
    assert "2 missing: " in str(caught.value)
    assert "1 unexpected: extra.weight" in str(caught.value)
    assert "model [64, 16, 1, 2, 2], checkpoint [3, 16, 1, 2, 2]" in str(caught.value)
    assert "MC0722" in str(caught.value)


def test_another_configuration_is_a_long_report(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    with pytest.raises(MagiCheckpointError, match=r"misshaped: .*, and \d+ more"):
        load_transformer(tmp_path, GROUPED)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("videodit_blocks.layers.self_attention.linear_qkv.weight", torch.zeros(2, 3), "MAGI-1.1"),
        (LAYER + "mlp.linear_fc1.weight_scale", torch.zeros(1), "fp8"),
        (LAYER + "mlp.linear_fc1.weight", torch.zeros(1, 2, 2, dtype=torch.float8_e4m3fn), "fp8"),
    ],
    ids=["magi_1_1", "fp8_scale", "fp8_weight"],
)
def test_other_layouts_are_refused_by_name(tmp_path: Path, name: str, tensor: Tensor, words: str) -> None:
    save_file({**state(), name: tensor}, tmp_path / "model.safetensors")
    with pytest.raises(MagiLayoutError, match=words) as caught:
        load_transformer(tmp_path, TINY)
    assert caught.value.code == "MC0723"


def test_files_that_are_not_there_or_not_readable(tmp_path: Path) -> None:
    with pytest.raises(MagiCheckpointError, match="no such file"):
        load_transformer(tmp_path, TINY)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(MagiCheckpointError, match="not a safetensors file"):
        load_transformer(tmp_path, TINY)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(MagiCheckpointError, match="index"):
        load_transformer(tmp_path, TINY)


class Plain:
    """Stands for zstandard: its "compression" reverses the bytes."""

    class ZstdDecompressor:
        def copy_stream(self, source: object, target: object) -> None:
            target.write(source.read()[::-1])


def test_compressed_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = state()
    shard = write_shards(tmp_path, tensors)[1]
    shard.with_name(shard.name + ".zst").write_bytes(shard.read_bytes()[::-1])
    shard.unlink()
    monkeypatch.setitem(sys.modules, "zstandard", Plain)
    assert same(load_transformer(tmp_path, TINY), tensors)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MagiCheckpointError, match="zstandard is not installed") as caught:
        load_transformer(tmp_path, TINY)
    assert "zstd -d" in caught.value.remedy


def test_names_of_the_diffusers_draft_round_trip() -> None:
    tensors = state()
    theirs = to_diffusers(tensors)
    assert len(theirs) == len(tensors) + 7 * TINY.num_layers
    assert "transformer_blocks.1.self_attention.linear_kv_xattn.projections.7.weight" in theirs
    assert "condition_embedder.y_embedder.null_caption_embedding" in theirs
    assert not any(name.startswith(ours) for name in theirs for ours, _ in RENAMED)
    back = from_diffusers(theirs)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], v) for k, v in tensors.items())
    del theirs["transformer_blocks.1.self_attention.linear_kv_xattn.projections.7.weight"]
    with pytest.raises(KeyError):
        from_diffusers(theirs)


# ------------------------------------------------------------------------------------ the other components


def vae_config(**changed: object) -> dict[str, object]:
    config = {
        "video_size": 64, "video_length": 16, "patch_size": 8, "patch_length": 4, "in_chans": 3, "z_chans": 16,
        "double_z": True, "embed_dim": 256, "depth": 1, "num_heads": 4, "mlp_ratio": 1.0, "qkv_bias": True,
        "with_cls_token": True, "ln_in_attn": True, "conv_last_layer": True, "use_rope": False, "use_final_proj": False,
        "norm_code": False, "drop_rate": 0.0,
    }  # fmt: skip
    return config | changed


@pytest.mark.parametrize("nested", [True, False])
def test_the_vae_from_its_official_folder(tmp_path: Path, nested: bool) -> None:
    config = {"_class_name": "ViTVAE", "model_type": "vit", "ddconfig": vae_config()} if nested else vae_config()
    (tmp_path / "config.json").write_text(json.dumps(config))
    original = tiny_vae()
    save_file(original.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = load_vae(tmp_path, torch.float32)
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_other_vaes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MagiCheckpointError, match=r"config\.json"):
        load_vae(tmp_path)
    for changed, words in (({"use_rope": True}, "use_rope"), ({"norm_code": True}, "norm_code")):
        (tmp_path / "config.json").write_text(json.dumps(vae_config(**changed)))
        with pytest.raises(MagiConfigError, match=words):
            load_vae(tmp_path)
    config = vae_config()
    del config["embed_dim"]
    (tmp_path / "config.json").write_text(json.dumps({"ddconfig": config}))
    with pytest.raises(MagiConfigError, match="missing fields: embed_dim"):
        load_vae(tmp_path)


def official(folder: Path, **engine: object) -> Path:
    """A config file in the shape of example/4.5B/4.5B_config.json, for the tiny model."""
    distilled = bool(engine.get("distill", False)) or bool(engine.get("fp8_quant", False))
    data = {
        "model_config": {
            **asdict(TINY), "model_name": "videodit_ardf", "apply_layernorm_1p": True, "params_dtype": "torch.bfloat16",
        },
        "runtime_config": {
            "cfg_number": 1 if distilled else 3, "cfg_t_range": [0.0, 0.0217, 0.1, 0.3, 0.999],
            "prev_chunk_scales": [1.5, 1.5, 1.5, 1.0, 1.0], "text_scales": [7.5, 7.5, 7.5, 0.0, 0.0],
            "noise2clean_kvrange": [5, 4, 3, 2], "clean_chunk_kvrange": 1, "clean_t": 0.9999, "seed": 1234,
            "num_frames": 96, "video_size_h": 720, "video_size_w": 720, "num_steps": 8, "window_size": 4, "fps": 24,
            "chunk_width": 6, "load": "./ckpt/magi/4.5B_base", "t5_pretrained": "./ckpt/t5", "t5_device": "cuda",
            "vae_pretrained": "./ckpt/vae", "scale_factor": 0.18215, "temporal_downsample_factor": 4,
        },
        "engine_config": {
            "distributed_backend": "nccl", "distributed_timeout_minutes": 15, "pp_size": 1, "cp_size": 1,
            "cp_strategy": "none", "ulysses_overlap_degree": 1, "fp8_quant": False, "shortcut_mode": "8,16,16",
            "distill_nearly_clean_chunk_threshold": 0.3, "distill": False, "kv_offload": True,
            "enable_cuda_graph": False, **engine,
        },
    }  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(data))
    return path


def test_an_official_configuration(tmp_path: Path) -> None:
    base = read_official_config(official(tmp_path))
    assert base.model == TINY
    assert (base.height, base.num_frames, base.settings.num_inference_steps) == (720, 96, 8)
    assert not base.settings.distilled
    assert read_official_config(official(tmp_path, distill=True)).settings.distilled


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("runtime_config", {"cfg_number": 1}, "set it to 3"),
        ("runtime_config", {"num_step": 8}, "did you mean `num_steps`"),
        ("runtime_config", {"num_steps": 7}, "multiple of window_size"),
        ("engine_config", {"distil": True}, "did you mean `distill`"),
        ("model_config", {"apply_layernorm_1p": False}, "apply_layernorm_1p"),
        ("model_config", {"kv_channels": 16}, "heads"),
        ("model_config", {"layers": 3}, "unknown field `layers`"),
    ],
    ids=str,
)
def test_contradictions_are_refused(tmp_path: Path, section: str, change: dict, words: str) -> None:
    path = official(tmp_path)
    data = json.loads(path.read_text())
    data[section] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(MagiConfigError, match=words):
        read_official_config(path)


def test_what_is_no_configuration(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"model_config": {}}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(MagiConfigError):
            read_official_config(tmp_path / "c.json")
    with pytest.raises(MagiConfigError, match=r"official \*_config\.json"):
        read_official_config(tmp_path / "absent.json")


def test_the_whole_pipeline_from_official_files(tmp_path: Path) -> None:
    tensors = state()
    write_shards(tmp_path / "4.5B_base" / "inference_weight", tensors)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"ddconfig": vae_config()}))
    save_file(tiny_vae().state_dict(), tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    for part in tiny_text():
        part.save_pretrained(tmp_path / "t5")
    rows = np.random.default_rng(0).normal(size=(20, 16))
    np.savez(tmp_path / "tokens.npz", caption_token=rows[:1], logo_token=rows[1:2], other_tokens=rows)
    config = official(tmp_path)
    given = {"transformer": tmp_path / "4.5B_base", "vae": tmp_path / "vae", "text_encoder": tmp_path / "t5"}
    tokens = tmp_path / "tokens.npz"
    pipe = MagiPipeline.from_official(config, **given, special_tokens=tokens, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert same(pipe.transformer, tensors)
    assert torch.equal(pipe.special_tokens.other_tokens, torch.tensor(rows.astype(np.float16)).float())
    video = pipe("a red circle", height=32, width=32, num_frames=24, generator=torch.Generator().manual_seed(0)).frames
    assert video.shape == (1, 24, 32, 32, 3)
    with pytest.raises(MagiLayoutError, match="fp8"):
        MagiPipeline.from_official(official(tmp_path, fp8_quant=True), **given)
    with pytest.raises(MagiCheckpointError, match="t5-v1_1-xxl"):
        MagiPipeline.from_official(official(tmp_path), tmp_path / "4.5B_base", text_encoder=tmp_path / "none")


def test_special_tokens_of_another_kind(tmp_path: Path) -> None:
    np.savez(tmp_path / "tokens.npz", caption_token=np.zeros((1, 4)))
    with pytest.raises(MagiCheckpointError, match="missing arrays"):
        MagiSpecialTokens.from_npz(tmp_path / "tokens.npz")
    with pytest.raises(MagiCheckpointError, match=r"special_tokens\.npz"):
        MagiSpecialTokens.from_npz(tmp_path / "absent.npz")
