"""Law 3, parity: the same tokens are computed as in recorded runs, and the outputs agree to 1e-4.

Three traces were recorded from the official MotionCache code; the others come from a second writing-down of its rules
(motioncache_oracle.py) at settings that the official ones do not have.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mccompile.generate.errors import TraceSettings, TraceTensors, TraceUnreadable
from mccompile.generate.recording import Recording, read_recording, rules_of
from mccompile.generate.replay import (
    ReplayVerdict,
    build_model,
    compile_recorded,
    policy_text,
    prepare_recorded,
    replay,
    timeline,
    verdict,
)
from mccompile.language.load import load_policy
from tests.generate.motioncache_oracle import record

OFFICIAL = Path(__file__).parent.parent / "data" / "parity"
OURS = {
    "four_chunks": {"groups": 4, "tc": 0.5, "minr": 0.3, "norm": "max", "p1": 1, "thr": 0.12},
    "no_updates": {"p1": 0, "norm": "max", "mode": "token", "thr": 0.15},
    "early_end": {"steps": [12, 7, 9], "tc": 0.4, "ar": 4, "p1": 1, "thr": 0.1},
    "one_chunk": {"groups": 1, "h": 4, "w": 12, "norm": "mean", "p1": 1, "thr": 0.1},
    "other_shape": {
        "gs": 3, "h": 4, "w": 12, "heads": 3, "hd": 8, "layers": 3, "seed": 4, "mode": "token", "norm": "mean",
        "tc": 0.5, "minr": 0.3, "p1": 1, "thr": 0.2, "coef": [-2.0, 3.0, -1.5, 1.2, -0.01],
    },
    "frame_chunks": {"gs": 1, "groups": 4, "heads": 1, "hd": 24, "layers": 1, "p1": 1, "thr": 0.15},
}  # fmt: skip


@cache
def captured_like(frames: int, heads: int, shapes: tuple[tuple[str, tuple[int, ...]], ...], path: Path):  # type: ignore[no-untyped-def]
    """One capture for all recordings of models of one form; the weights are loaded into it."""
    recording = read_recording(path)
    model = build_model(recording)
    return model, prepare_recorded(recording, model)


def run(recording: Recording, text: str, fold: bool = True, **parameters: float) -> ReplayVerdict:
    shapes = tuple((k, tuple(v.shape)) for k, v in recording.weights.items())
    model, captured = captured_like(recording.frames, recording.heads, shapes, _first_of(recording, shapes))
    own = model.state_dict()
    for name, tensor in recording.weights.items():
        own[name].copy_(tensor)
    compiled, clock = compile_recorded(recording, model, captured, load_policy(text), parameters, fold=fold)
    assert compiled.runner.lowered.refusals == ()
    return verdict(list(replay(recording, compiled, clock)))


_FIRST: dict[tuple[object, ...], Path] = {}


def _first_of(recording: Recording, shapes: tuple[object, ...]) -> Path:
    return _FIRST.setdefault((recording.frames, recording.heads, shapes), recording.path)


def text_of(recording: Recording) -> str:
    return policy_text(rules_of(recording), recording.frames)


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "measured"])
@pytest.mark.parametrize("name", ["token_distance", "tokens_fine", "vbench_defaults"])
def test_official_traces(name: str, fold: bool) -> None:
    recording = read_recording(OFFICIAL / f"{name}.safetensors")
    result = run(recording, text_of(recording), fold)
    assert (result.agree, result.masks) == (120, 120)
    assert result.error < 1e-4


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


SLOW = ("four_chunks", "no_updates", "other_shape", "frame_chunks")


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "measured"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in OURS])
def test_other_settings(name: str, fold: bool, ours: Path) -> None:
    path = ours / f"{name}.safetensors"
    recording = read_recording(path if path.exists() else record(path, **OURS[name]))
    share = recording.masks.float().mean(-1).transpose(1, 2)[recording.update]
    assert all(n > 3 for n in ((share == 0).sum(), (share == 1).sum(), ((share > 0) & (share < 1)).sum()))
    result = run(recording, text_of(recording), fold)
    assert result.agree == result.masks == 2 * int(recording.update.sum())
    assert result.error < 1e-4


def test_a_wrong_policy_is_seen() -> None:
    """The comparison fails when the threshold, the norm or a row of the weights is another one."""
    recording = read_recording(OFFICIAL / "tokens_fine.safetensors")
    assert run(recording, text_of(recording), threshold=1.4).agree < 120
    other = dataclasses.replace(rules_of(recording), norm="max")
    assert run(recording, policy_text(other, recording.frames)).agree < 120
    outputs = {b: out.clone() for b, out in recording.outputs.items()}
    outputs["cond"][7, :, 2] += 2e-4
    assert not run(dataclasses.replace(recording, outputs=outputs), text_of(recording)).passed
    outputs["cond"][7, 0, 2, 0, 0] = float("nan")
    assert not run(dataclasses.replace(recording, outputs=outputs), text_of(recording)).passed


def test_inactive_chunks_do_not_count() -> None:
    """Outputs and masks of chunks that are not active mean nothing."""
    recording = read_recording(OFFICIAL / "tokens_fine.safetensors")
    masks, outputs = recording.masks.clone(), {b: out.clone() for b, out in recording.outputs.items()}
    masks[0, :, 1:] = True
    outputs["uncond"][0, :, 5:] = float("nan")
    changed = dataclasses.replace(recording, masks=masks, outputs=outputs)
    assert run(changed, text_of(recording)).passed


def test_exact_policy_computes_all_of_every_active_chunk() -> None:
    recording = read_recording(OFFICIAL / "tokens_fine.safetensors")
    everything = dataclasses.replace(recording, masks=torch.ones_like(recording.masks))
    result = run(everything, "exact")
    assert result.agree == result.masks


def test_chunks_on_different_timesteps_are_measured() -> None:
    """One table of changes holds for all chunks only if all go through the same timesteps."""
    recording = read_recording(OFFICIAL / "tokens_fine.safetensors")
    assert timeline(recording)[1]
    timesteps = recording.timesteps.clone()
    timesteps[12, 5:10] += 1
    assert not timeline(dataclasses.replace(recording, timesteps=timesteps))[1]


# ---- what is refused ---------------------------------------------------------------------------------------
def copy(folder: Path, settings: dict[str, object] | None = None) -> Path:
    """The trace tokens_fine in `folder`, with other settings (None removes one)."""
    path = folder / "t.safetensors"
    shutil.copy(OFFICIAL / "tokens_fine.safetensors", path)
    own = json.loads((OFFICIAL / "tokens_fine.json").read_text())
    for key, value in (settings or {}).items():
        own[key] = value
        if value == "absent":
            del own[key]
    path.with_suffix(".json").write_text(json.dumps(own))
    return path


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("groups", "absent", "`groups` is missing"),
        ("gs", 2.5, "`gs` is 2.5; a whole number of at least 1 is expected"),
        ("heads", 0, "`heads` is 0"),
        ("thr", "high", '`thr` is "high"; a number of at least 0'),
        ("mode", "chunk", '`mode` is "chunk"; one of global, token'),
        ("norm", "min", "one of mean, max, max_rescale"),
        ("tc", 1.5, "`tc` is 1.5; a share from 0 to 1"),
        ("tc", "absent", "`tc` is missing"),
        ("coef", [], "`coef` is not a list of numbers"),
        ("p1", True, "`p1` is true"),
    ],
)
def test_settings_that_mean_nothing(key: str, value: object, why: str, tmp_path: Path) -> None:
    with pytest.raises(TraceSettings, match="MC0711") as caught:
        rules_of(read_recording(copy(tmp_path, {key: value})))
    assert why in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TraceUnreadable, match="MC0710"):
        read_recording(tmp_path / "none.safetensors")
    path = copy(tmp_path)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(TraceSettings, match="not JSON"):
        read_recording(path)
    path = copy(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TraceUnreadable, match="not a safetensors file"):
        read_recording(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(TraceUnreadable, match=r"t\.json"):
        read_recording(path)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("trace.mask", None, "trace.mask missing"),
        ("trace.update", lambda t: t[:, :2], r"trace.update is \[30, 2\]; \[30, 3\] is expected"),
        ("trace.timesteps", lambda t: t[:-1], r"trace.timesteps is \[29, 15\]"),
        ("trace.out_cond", lambda t: t[..., :-2], "trace.out_cond is"),
        ("trace.ctx_uncond", lambda t: t[0], "trace.ctx_uncond is"),
        ("trace.latents", lambda t: t[:, :, :10], "10 frames, the settings say 3 groups of 5"),
        ("weights.patch_embedding.weight", None, "weights.patch_embedding.weight is missing"),
        ("weights.proj_out.bias", lambda t: t[:3], "weights.proj_out.bias is"),
        ("weights.proj_out.weight", None, "weights.proj_out.weight is missing"),
        ("weights.blocks.1.attn1.to_q.bias", None, "weights.blocks.1.attn1.to_q.bias is None"),
    ],
)
def test_tensors_that_do_not_fit(name: str, change, why: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = copy(tmp_path)
    tensors = load_file(path)
    own = tensors.pop(name)
    if change is not None:
        tensors[name] = change(own).contiguous()
    save_file(tensors, path)
    with pytest.raises(TraceTensors, match=why):
        build_model(read_recording(path))


def test_heads_that_do_not_divide_the_width(tmp_path: Path) -> None:
    with pytest.raises(TraceTensors, match="64 does not divide into 7 heads"):
        build_model(read_recording(copy(tmp_path, {"heads": 7})))
