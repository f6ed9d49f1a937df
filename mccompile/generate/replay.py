"""Replays recorded calls through a compiled policy, and compares the computed tokens and the outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import SkyReelsV2Transformer3DModel

from mccompile import api
from mccompile.generate.errors import TraceTensors
from mccompile.generate.recording import BRANCHES, Recording, Rules
from mccompile.ir import PolicyIR
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Timeline
from mccompile.runtime.compiled import CompiledModel

TOLERANCE = 1e-4  # largest error of an output of an active chunk, float32


@dataclass(frozen=True, slots=True)
class Agreement:
    """One branch of one recorded call.

    chunks: the active ones. agree: which of them computed exactly the recorded tokens. same, tokens: tokens of
    the active chunks on which both agree, of all. error: largest difference of an output of an active chunk.
    """

    call: int
    branch: str
    chunks: tuple[int, ...]
    agree: tuple[bool, ...]
    same: int
    tokens: int
    error: float


@dataclass(frozen=True, slots=True)
class ReplayVerdict:
    """A whole replay: masks that agree of all (one per call, branch and active chunk), and the largest error."""

    agree: int
    masks: int
    error: float

    @property
    def passed(self) -> bool:
        return self.agree == self.masks and self.error <= TOLERANCE


def policy_text(rules: Rules, frames: int) -> str:
    """The shipped MotionCache with the recorded settings; `frames` is the length of a chunk.

    A chunk's tokens share one timestep, so their modulation moves by one number: `over = chunk` is also the change
    that the recorded code measures per token.
    """
    over = "token" if rules.per_token else "chunk"
    guards = [] if rules.vote is None else [f"vote {_percent(rules.vote)} of frames"]
    guards += [] if rules.share is None else [f"hold when selected < {_percent(rules.share)}"]
    below = " ".join(guards)
    floor = f"  param floor = {_percent(rules.floor)} in 0%..100%\n" if rules.norm == "max_rescale" else ""
    norm = "min_max(floor = floor)" if rules.norm == "max_rescale" else f"normalise(by = {rules.norm})"
    coefficients = ", ".join(map(repr, rules.coefficients))
    return f"""policy replay extends motioncache {{
  param threshold = {rules.threshold!r} in 0..{max(1.0, 10 * rules.threshold)!r}
  param warmup = {rules.warm + 1} steps in 1..{max(50, rules.warm + 1)}
  param updates = {rules.updates} in 0..{max(50, rules.updates)}
{floor}
  signal drift = rel_l1(modulation, over = chunk) | polynomial([{coefficients}])
  signal motion = frame_diff(block_output) | {norm}

  phase coarse until updates refreshes {{ reuse {over} while accumulate(drift) < threshold }}
  phase fine {{ reuse token while accumulate(drift * motion) < threshold
    {below} }}

  chunks {{ frames: {frames}  pending: skip  finished: keep }}
}}
"""


def _percent(share: float) -> str:
    return f"{100 * share:.10f}%"


def build_model(recording: Recording) -> SkyReelsV2Transformer3DModel:
    """The recorded transformer: sizes from its weights, heads and chunk length from the settings.

    Raises TraceTensors where the weights are not those of such a model.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in recording.weights.items()}
    path = str(recording.path)
    try:
        width, channels, *patch = shapes["patch_embedding.weight"]
        text_width = shapes["condition_embedder.text_embedder.linear_1.weight"][1]
        time_width = shapes["condition_embedder.time_embedder.linear_1.weight"][1]
        ffn_width = shapes["blocks.0.ffn.net.0.proj.weight"][0]
        leaving = shapes["proj_out.weight"][0]
    except KeyError as error:
        raise TraceTensors(path, f"weights.{error.args[0]} is missing") from None
    if width % recording.heads:
        raise TraceTensors(path, f"a width of {width} does not divide into {recording.heads} heads")
    blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")}
    model = SkyReelsV2Transformer3DModel(
        patch_size=tuple(patch),
        num_attention_heads=recording.heads,
        attention_head_dim=width // recording.heads,
        in_channels=channels,
        out_channels=leaving // math.prod(patch),
        text_dim=text_width,
        freq_dim=time_width,
        ffn_dim=ffn_width,
        num_layers=len(blocks),
        cross_attn_norm="blocks.0.norm2.weight" in shapes,
        qk_norm="rms_norm_across_heads" if "blocks.0.attn1.norm_q.weight" in shapes else None,
        num_frame_per_block=recording.frames,
    )
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    odd = sorted(n for n in own.keys() | shapes.keys() if own.get(n) != shapes.get(n))
    if odd:
        name = odd[0]
        raise TraceTensors(path, f"weights.{name} is {shapes.get(name)}; the model has {own.get(name)}")
    model.load_state_dict(dict(recording.weights))
    return model.eval().requires_grad_(False)


def timeline(recording: Recording) -> tuple[Timeline, bool]:
    """The clock of the recorded calls, and whether every chunk goes through the same timesteps.

    Only then can changes of the timestep's modulation be folded into one table; else the graph measures them.
    """
    done = [0] * recording.chunks
    rows, own = [], dict[int, float]()
    uniform = True
    told = recording.timesteps[:, :: recording.frames].tolist()
    for active_now, timesteps in zip(recording.update.tolist(), told, strict=True):
        row = []
        for chunk, (active, timestep) in enumerate(zip(active_now, timesteps, strict=True)):
            if not active:
                row.append(ChunkTime(chunk, "finished" if done[chunk] else "pending", 0))
                continue
            row.append(ChunkTime(chunk, "active", done[chunk]))
            uniform &= own.setdefault(done[chunk], float(timestep)) == timestep
            done[chunk] += 1
        rows.append(tuple(row))
    steps = tuple(own[step] for step in sorted(own))
    grid = Grid(len(steps), steps, tuple(t / 1000 for t in steps))
    return Timeline(str(recording.path), grid, tuple(rows)), uniform


def prepare_recorded(recording: Recording, model: SkyReelsV2Transformer3DModel) -> api.Prepared:
    """The recorded model, captured at other sizes than the recorded ones. Raises CaptureError."""
    probe, second = _example(recording, 4, (3, 7)), _example(recording, 5, (5, 11))
    return api.prepare(model, probe=probe, second=second)


def compile_recorded(
    recording: Recording,
    model: SkyReelsV2Transformer3DModel,
    captured: api.Prepared,
    policy: PolicyIR,
    parameters: Mapping[str, float],
    backend: Literal["eager", "inductor"] = "eager",
    fold: bool = True,
    deny_refusals: bool = False,
) -> tuple[CompiledModel, Timeline]:
    """The recorded model under a policy, and the clock that drives it. Raises what `api.compile` raises."""
    clock, uniform = timeline(recording)
    compiled = api.compile(
        model,
        policy,
        backend=backend,
        clock=clock,
        fold=fold and uniform,
        deny_refusals=deny_refusals,
        captured=captured,
        **parameters,  # type: ignore[arg-type]
    )
    return compiled, clock


def _example(recording: Recording, chunks: int, area: tuple[int, int]) -> dict[str, object]:
    """Arguments of a call of other sizes than the recorded ones, so that no size is taken for a constant."""
    _, _, *patch = recording.weights["patch_embedding.weight"].shape
    frames, height, width = (n * p for n, p in zip((chunks * recording.frames, *area), patch, strict=True))
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(1, recording.latents.size(1), frames, height, width, generator=noise)
    timesteps = torch.arange(1, frames + 1, dtype=recording.timesteps.dtype).mul(7).unsqueeze(0)
    context = recording.contexts[BRANCHES[0]]
    return _arguments(latents.to(context.device), timesteps.to(context.device), context)


def _arguments(latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> dict[str, object]:
    return {
        "hidden_states": latents,
        "timestep": timesteps,
        "encoder_hidden_states": context,
        "enable_diffusion_forcing": True,
        "return_dict": False,
    }


def replay(recording: Recording, compiled: CompiledModel, clock: Timeline) -> Iterator[Agreement]:
    """Every recorded call through the compiled model, branch by branch, compared as it goes."""
    masks = compiled.runner.masks = []
    for call in range(recording.calls):
        clock.row = call
        latents, timesteps = recording.latents[call : call + 1], recording.timesteps[call : call + 1]
        for number, branch in enumerate(BRANCHES):
            with compiled.cache_context(branch):
                (out,) = compiled(**_arguments(latents, timesteps, recording.contexts[branch]))
            computed = torch.from_numpy(masks.pop()[0]).flatten(1)
            yield _compare(recording, call, number, computed, out)


def _compare(recording: Recording, call: int, number: int, computed: torch.Tensor, out: torch.Tensor) -> Agreement:
    """computed: [G, frames * P] bool; out: [1, C, F, H, W]."""
    branch = BRANCHES[number]
    chunks = tuple(recording.update[call].nonzero().flatten().tolist())
    equal = computed == recording.masks[call, number]
    differences = (out[0] - recording.outputs[branch][call]).abs().unflatten(1, (recording.chunks, recording.frames))
    return Agreement(
        call=call,
        branch=branch,
        chunks=chunks,
        agree=tuple(bool(equal[g].all()) for g in chunks),
        same=sum(int(equal[g].sum()) for g in chunks),
        tokens=len(chunks) * computed.size(1),
        error=max((float(differences[:, g].max()) for g in chunks), default=0.0, key=_nan_last),
    )


def _nan_last(error: float) -> float:
    """An output that is not a number is the largest error of all."""
    return math.inf if math.isnan(error) else error


def verdict(agreements: list[Agreement]) -> ReplayVerdict:
    """The sum of all branches of all calls."""
    return ReplayVerdict(
        agree=sum(sum(a.agree) for a in agreements),
        masks=sum(len(a.agree) for a in agreements),
        error=max((a.error for a in agreements), default=0.0, key=_nan_last),
    )
