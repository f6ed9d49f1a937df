"""Compares our MAGI-1 with outputs recorded from the official modules.

    python -m tests.magi_fixture FOLDER

FOLDER holds fixture.safetensors, fixture_vae.safetensors and schedule.json. Prints the relative L2 error of each
part, last the worst; exits 1 when a module is past 2e-5, a whole run past 2e-4, or a schedule differs at all.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mccompile.models.magi.attention import ChunkRanges, cross_attention, self_attention
from mccompile.models.magi.cache import CleanChunkCache
from mccompile.models.magi.checkpoint import vae_arguments
from mccompile.models.magi.config import MagiSettings, model_config_from_official
from mccompile.models.magi.pipeline import MagiPipeline
from mccompile.models.magi.predict import CallText, VelocityPredictor
from mccompile.models.magi.schedule import MagiCall, magi_schedule, stages, step_intervals, time_table
from mccompile.models.magi.scheduler import MagiScheduler
from mccompile.models.magi.text import MagiSpecialTokens, check_special_tokens, chunk_captions
from mccompile.models.magi.transformer import KeyValues, MagiTransformer3DModel
from mccompile.models.magi.vae import AutoencoderKLMagi

MODULE_TOLERANCE = 2e-5
RUN_TOLERANCE = 2e-4
MODELS = ("A", "B")


@dataclass(frozen=True, slots=True)
class Part:
    """One compared quantity."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # NaN is not


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2 distance in float64; infinite where shapes differ."""
    if ours.shape != theirs.shape:
        return math.inf
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-300))


@dataclass(frozen=True, slots=True)
class Fixture:
    tensors: dict[str, Tensor]
    vae: dict[str, Tensor]
    schedule: dict

    @classmethod
    def read(cls, folder: Path) -> Fixture:
        return cls(
            load_file(folder / "fixture.safetensors"),
            load_file(folder / "fixture_vae.safetensors"),
            json.loads((folder / "schedule.json").read_text()),
        )

    def model(self, name: str, dtype: torch.dtype = torch.float32) -> MagiTransformer3DModel:
        config = model_config_from_official(dict(self.schedule["model_config"][name]))
        model = MagiTransformer3DModel(**asdict(config)).eval().requires_grad_(False)
        head = f"{name}.state."
        model.load_state_dict({k.removeprefix(head): v.float() for k, v in self.tensors.items() if k.startswith(head)})
        return model

    def text(self) -> tuple[Tensor, Tensor]:
        """Captions float32 [3, L, C] and masks bool [3, L] of the module tests."""
        return self.tensors["in.y"][:, 0].float(), self.tensors["in.mask"][:, 0].bool()


# ---------------------------------------------------------------------------------------------- modules


def _embeddings(f: Fixture, name: str, model: MagiTransformer3DModel) -> Iterator[tuple[str, Tensor]]:
    captions, _ = f.text()
    rows = model.config.caption_max_length
    yield "t_embedder", model.t_embedder(f.tensors["in.t3"][0], torch.float32)
    length = f.tensors[f"{name}.y_xattn"].shape[2]
    caption = captions[:1, None, :length]
    text, kept = model.y_embedder(caption, torch.tensor([rows - 2]))
    yield "y_xattn", text
    yield "y_adaln_cond", kept[None]
    yield "y_adaln_uncond", model.y_embedder(caption, torch.tensor([rows - 1]))[1][None]
    frames, (height, width) = f.tensors["in.x"].shape[2], _grid(f)
    cos, sin = model.rope(frames, height, width, torch.tensor(0))
    yield "rope_sin_cos", torch.cat((sin, cos), dim=-1)[0, :, 0]


def _grid(f: Fixture) -> tuple[int, int]:
    return f.schedule["A"]["H"], f.schedule["A"]["W"]


def _chunk_width(f: Fixture) -> int:
    return f.schedule["A"]["chunk_tokens"] // math.prod(_grid(f))


def _first_layer(f: Fixture, model: MagiTransformer3DModel) -> Iterator[tuple[str, Tensor]]:
    """The inside of the one-chunk call at the second of the three times."""
    captions, masks = f.text()
    width, (height, rows_width) = _chunk_width(f), _grid(f)
    used = int(masks[0].sum())
    hidden = model._patchify(f.tensors["in.x"][:, :, :width])
    times, row = f.tensors["in.t3"][:, 1:2], torch.tensor([model.config.caption_max_length - 2])
    text, condition = model._embed(times, captions[None, :1, :used], row, None)
    rope = model.rope(width, height, rows_width, torch.tensor(0))
    tokens = hidden.shape[1]
    visible = ChunkRanges(((0, tokens),), masks[None, :1, :used])
    yield "one.pre.hidden", hidden.transpose(0, 1)
    yield "one.pre.condition", condition
    yield "one.pre.condition_map", (torch.arange(tokens) // tokens)[:, None].float()
    yield "one.pre.rope", torch.cat((rope[1], rope[0]), dim=-1)[0, :, 0]
    yield "one.pre.y_xattn_flat", text[0, 0]
    layer = model.videodit_blocks.layers[0]
    attention = layer.self_attention
    q, k, v, qx = attention.project(hidden, rope)
    self_out = self_attention(q, k, v, visible)
    cross_out = cross_attention(qx, *attention.project_text(text), visible)
    yield "one.layer0.self_attn", self_out.flatten(-2).transpose(0, 1)
    yield "one.layer0.cross_attn", cross_out.flatten(-2).transpose(0, 1)
    yield "one.layer0.attn_proj", attention.join(self_out, cross_out).transpose(0, 1)
    out, _ = layer(hidden, text, condition, torch.zeros(1, tokens, dtype=torch.int64), rope, visible, None, 0)
    yield "one.layer0.out", out.transpose(0, 1)


@dataclass(frozen=True, slots=True)
class _Call:
    """Direct calls of the transformer as they were recorded."""

    f: Fixture
    model: MagiTransformer3DModel

    def __call__(
        self, first: int, times: Tensor, ranges: Tensor, row: int = -2, cached: KeyValues | None = None, keep: int = 0
    ) -> tuple[Tensor, KeyValues]:
        width, (captions, masks) = _chunk_width(self.f), self.f.text()
        chunks = slice(first, first + times.shape[1])
        return self.model(
            hidden_states=self.f.tensors["in.x"][:, :, chunks.start * width : chunks.stop * width],
            timestep=times,
            encoder_hidden_states=captions[None, chunks],
            encoder_attention_mask=masks[None, chunks],
            adaln_row=torch.tensor([self.model.config.caption_max_length + row]),
            kv_ranges=ranges.long(),
            frame_offset=torch.tensor(first * width),
            cached_key_values=cached,
            return_kv_chunks=keep,
            return_dict=False,
        )


def _whole_model(f: Fixture, name: str, model: MagiTransformer3DModel) -> Iterator[tuple[str, Tensor]]:
    call, t = _Call(f, model), f.tensors["in.t3"]
    three, two = f.tensors["in.kv_range3"], f.tensors["in.kv_range2"]
    tokens = f.schedule[name]["chunk_tokens"]
    yield "one.out", call(0, t[:, 1:2], torch.tensor([[0, tokens]]))[0]
    yield "three.out_cond", call(0, t, three)[0]
    yield "three.out_null_adaln", call(0, t, three, row=-1)[0]
    fill, cached = call(0, torch.cat((torch.full((1, 1), 0.9999), t[:, 1:]), dim=1), three, keep=1)
    yield "cache.fill_out", fill
    yield "cache.layer0_kv_chunk0", torch.cat(cached[0], dim=-1)[0]
    yield "cache.read_out", call(1, torch.tensor([[0.4, 0.05]]), two, cached=cached)[0]


def _module_call(f: Fixture, extra: bool, near: bool) -> MagiCall:
    """The call that the guidance was recorded at; with `extra` its first chunk is clean."""
    tokens = f.schedule["A"]["chunk_tokens"]
    times = [float(t) for t in f.tensors["in.t3"][0]]
    if extra:
        times[0] = float(torch.tensor(0.9999))
    return MagiCall(
        index=0, stage=0, step=0, slice_point=0,
        clean_chunks=(0,) if extra else (), active_chunks=(1, 2) if extra else (0, 1, 2),
        step_indices=(0, 0) if extra else (0, 0, 0), times=tuple(times), next_times=tuple(times[int(extra) :]),
        kv_ranges=tuple((a // tokens, b // tokens) for a, b in f.tensors["in.kv_range3"].tolist()),
        interval=1, nearly_clean=near, finished_chunk=None,
    )  # fmt: skip


def _guidance(f: Fixture, name: str, model: MagiTransformer3DModel) -> Iterator[tuple[str, Tensor]]:
    captions, masks = f.text()
    text = CallText(captions, masks, captions.roll(1, 0), masks.flip(0))
    width = _chunk_width(f)
    base = MagiSettings(num_inference_steps=8, chunk_width=width)
    for key, distilled, extra, near in (
        ("cfg3.velocity", False, False, False),
        ("cfg3_extra.velocity", False, True, False),
        ("distill.velocity_near0", True, False, False),
        ("distill.velocity_near1", True, False, True),
        ("distill_extra.velocity_near1", True, True, True),
    ):
        settings = replace(base, distilled=distilled)
        for skip in (False, True):
            predictor = VelocityPredictor(model, settings, CleanChunkCache(f.schedule[name]["chunk_tokens"]), skip)
            velocities = predictor.predict(_module_call(f, extra, near), f.tensors["in.x"], text, 0)
            yield key, torch.cat(velocities, dim=2)


def modules(f: Fixture) -> Iterator[Part]:
    """Every recorded module output; the clean chunk of an `_extra` call has no velocity."""
    for name in MODELS:
        model = f.model(name)
        inner = (_embeddings(f, name, model), _first_layer(f, model))
        outer = (_whole_model(f, name, model), _guidance(f, name, model))
        for group in inner + outer:
            for key, ours in group:
                theirs = f.tensors[f"{name}.{key}"].float()
                if "_extra" in key:
                    theirs = theirs[:, :, _chunk_width(f) :]
                yield Part(f"{name}.{key}", relative(ours, theirs), MODULE_TOLERANCE)


# ------------------------------------------------------------------------------------------- schedules


def _exact(name: str, equal: bool) -> Part:
    return Part(name, 0.0 if equal else math.inf, 0.0)


def _run_settings(f: Fixture, run: str) -> MagiSettings:
    recorded = f.schedule["runs"][run]
    return MagiSettings(
        num_inference_steps=recorded["num_steps"],
        window_size=recorded["window_size"],
        chunk_width=recorded["calls"][0]["chunk_width"],
        noise2clean_kvrange=() if run.endswith("_plain") else (5, 4, 3, 2),
        distilled="cfg3" not in run,
    )


def _prefix_frames(f: Fixture, run: str) -> int:
    kind = run.split("_")[0]
    return {"t2v": 0, "i2v": 1, "v2v": f.tensors["run.prefix"].shape[2]}[kind]


def _same_call(ours: MagiCall, theirs: dict) -> bool:
    return (
        list(ours.times) == theirs["timestep"]
        and [list(r) for r in ours.kv_ranges] == theirs["kv_range_chunks"]
        and ours.slice_point == theirs["slice_point"]
        and len(ours.chunks) == theirs["denoising_range_num"]
        and (ours.clean_chunk is not None) == theirs["fwd_extra_1st_chunk"]
        and ours.is_prefix == theirs.get("extract_prefix_video_feature", False)
        and ours.nearly_clean == theirs.get("distill_nearly_clean_chunk", False)
        and ours.interval == theirs["distill_interval"]
    )


def schedules(f: Fixture) -> Iterator[Part]:
    """Time tables, stages and every call of every run: equal or not."""
    for key, table in f.schedule["t_tables"].items():
        steps, _, variant = key.partition("_")
        transform, mode = ("square", "8,16,16") if variant == "square" else ("sd3", variant or "8,16,16")
        yield _exact(f"t_tables.{key}", list(time_table(int(steps), transform, mode)) == table)
    for key, intervals in f.schedule["intervals"].items():
        steps, _, mode = key.partition("_")
        yield _exact(f"intervals.{key}", list(step_intervals(int(steps), mode)) == intervals)
    for key, table in f.schedule["sequences"].items():
        chunks, window, offset = (int("".join(c for c in word if c.isdigit())) for word in key.split("_"))
        ours = stages(chunks, window, offset)
        columns = {"clip_start": "first", "clip_end": "end", "t_start": "slot_first", "t_end": "slot_end"}
        equal = all([getattr(s, field) for s in ours] == table[column] for column, field in columns.items())
        yield _exact(f"sequences.{key}", equal)
    for run, recorded in f.schedule["runs"].items():
        settings = _run_settings(f, run)
        prefix = _prefix_frames(f, run) // settings.chunk_width
        calls = magi_schedule(settings, recorded["chunk_num"], prefix)
        equal = len(calls) == len(recorded["calls"])
        equal = equal and all(_same_call(c, r) for c, r in zip(calls, recorded["calls"], strict=True))
        emitted = [(c.finished_chunk - prefix, c.index + 1) for c in calls if c.finished_chunk is not None]
        equal = equal and emitted == [(e["chunk"], e["after_calls"]) for e in recorded["emitted"]]
        yield _exact(f"schedule.{run}", equal)


# ------------------------------------------------------------------------------------------------ runs


def _special_tokens(f: Fixture) -> MagiSpecialTokens:
    rows = f.tensors["run.special.other_tokens_fp16"].float()
    tokens = MagiSpecialTokens(caption_channels=rows.shape[1], num_other_tokens=rows.shape[0])
    tokens.load_state_dict({"other_tokens": rows}, strict=False)
    return tokens


def runs(f: Fixture) -> Iterator[Part]:
    """Whole sampling runs of the 4.5B-like model, their captions, and what they emit."""
    model, tokens = f.model("A"), _special_tokens(f)
    embeds, mask = f.tensors["run.caption_embs"][:, 0].float(), f.tensors["run.emb_masks"].bool()
    null = model.y_embedder.null_caption_embedding
    for run, recorded in f.schedule["runs"].items():
        settings, prefix_frames = _run_settings(f, run), _prefix_frames(f, run)
        names = check_special_tokens(() if run.endswith("_plain") else ("HQ", "DURATION"), tokens)
        chunks, prefix_chunks = recorded["chunk_num"], prefix_frames // settings.chunk_width
        captions = chunk_captions(embeds, mask, null, chunks, prefix_chunks, tokens, names)
        sums = [captions.caption_mask.sum(1).tolist(), captions.null_mask.sum(1).tolist()]
        yield _exact(f"run.{run}.mask_sums", sums == recorded["mask_sums"])
        head = f.tensors.get(f"run.{run}.y_head")
        if head is not None:
            ours = torch.stack((captions.caption, captions.null))[:, :, : head.shape[2]]
            yield Part(f"run.{run}.y_head", relative(ours, head), MODULE_TOLERANCE)
        pipe = MagiPipeline(model, MagiScheduler.from_settings(settings), special_tokens=tokens)
        yield from _whole_run(f, run, pipe, names)


def _whole_run(f: Fixture, run: str, pipe: MagiPipeline, names: tuple[str, ...]) -> Iterator[Part]:
    prefix_frames = _prefix_frames(f, run)
    frames = f.schedule["runs"][run]["latent_size"][2] - prefix_frames
    last: list[Tensor] = []

    def on_step(_pipe: MagiPipeline, _index: int, _times: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        last[:] = [kept["latents"]]
        return {}

    pipe.set_progress_bar_config(disable=True)
    result = pipe(
        prompt_embeds=f.tensors["run.caption_embs"][:, 0].float(),
        prompt_attention_mask=f.tensors["run.emb_masks"].bool(),
        latents=f.tensors["run.noise"],
        prefix_latents=f.tensors["run.prefix"][:, :, :prefix_frames] if prefix_frames else None,
        num_frames=frames * pipe.scheduler.settings.temporal_factor,
        special_tokens=names,
        output_type="latent",
        callback_on_step_end=on_step,
    )
    yield Part(f"run.{run}.latents", relative(result.frames, f.tensors[f"run.{run}.latents"]), RUN_TOLERANCE)
    final = f.tensors.get(f"run.{run}.final_x")
    if final is not None:
        yield Part(f"run.{run}.final_x", relative(last[0], final), RUN_TOLERANCE)


# ------------------------------------------------------------------------------------------------- vae


def autoencoder(f: Fixture) -> Iterator[Part]:
    """The ViT autoencoder: moments, latent, decoded video, and a single image."""
    model = AutoencoderKLMagi(**vae_arguments(f.schedule["vae_config"], "schedule.json")).eval().requires_grad_(False)
    model.load_state_dict({k.removeprefix("state."): v.float() for k, v in f.vae.items() if k.startswith("state.")})
    posterior = model.encode(f.vae["in.video"]).latent_dist
    image = model.encode(f.vae["in.video"][:, :, :1]).latent_dist.mode()
    for key, ours in (
        ("moments", posterior.parameters),
        ("latent", posterior.mode()),
        ("decoded", model.decode(f.vae["latent"]).sample),
        ("image_latent", image),
    ):
        yield Part(f"vae.{key}", relative(ours, f.vae[key]), MODULE_TOLERANCE)


def check(folder: Path) -> Iterator[Part]:
    """Every part of the fixture in `folder`."""
    fixture = Fixture.read(folder)
    with torch.no_grad():
        for group in (schedules, modules, runs, autoencoder):
            yield from group(fixture)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m tests.magi_fixture FOLDER\n")
        return 2
    parts = []
    for part in check(Path(arguments[0])):
        parts.append(part)
        verdict = "ok  " if part.ok else "FAIL"
        sys.stdout.write(f"{verdict} {part.error:9.2e}  (at most {part.tolerance:.0e})  {part.name}\n")
    worst = max(parts, key=lambda p: (not p.ok, p.error if p.error == p.error else math.inf))
    sys.stdout.write(f"worst: {worst.error:.3e} {worst.name}\n")
    return 0 if all(p.ok for p in parts) else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
