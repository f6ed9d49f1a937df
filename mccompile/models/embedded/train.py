"""Train the embedded model: `python -m mccompile.models.embedded.train --out DIR --steps N --threads K [--resume]`.

Flow matching with a noise level per chunk over endless procedural videos. Matrices inside blocks learn by Muon, the
rest by AdamW; the rate warms up, stays, and falls linearly to zero over the last `DECAY_SHARE` of the run. A run is as
long as its `--steps`, or, with `--minutes`, as its wall clock allows. Checkpoints are atomic and carry everything
needed to go on; the exponential average of the weights is what `export` writes into the pipeline folder.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import SkyReelsV2Transformer3DModel
from torch import Tensor

from mccompile.models.embedded.build import FLOW_SHIFT, build_transformer, write_folder
from mccompile.models.embedded.codec import BlockCodec
from mccompile.models.embedded.forward import PromptText, training_forward
from mccompile.models.embedded.noise import sample_levels
from mccompile.models.embedded.prompts import PromptEncoder
from mccompile.models.embedded.scenes import FRAMES, describe, render, sample_scene

MUON_RATE: Final = 2e-3
ADAM_RATE: Final = 1e-3
WARM_UP_STEPS: Final = 60
DECAY_SHARE: Final = 0.5
EMA_DECAY: Final = 0.998
TEXT_DROPOUT: Final = 0.1
MAX_PADDING: Final = 496
SAVE_SECONDS: Final = 60.0
SHORT_FRAMES: Final = 15
LONG_EVERY: Final = 3
"""Every third batch shows whole videos, the others only their first half: most of what there is to learn (words, looks,
a chunk following a chunk) is in it at less than half the cost."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Clean latents [B, C, F, H, W], their prompts' text, noise of the same shape, level and loss weight [B, F]."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    counted: Tensor
    text: PromptText


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What the command line asks for."""

    out: Path
    steps: int
    batch: int
    threads: int
    minutes: float | None
    compiled: bool
    seed: int


class BatchSampler:
    """Draws batches; everything follows from (seed, step), so a resumed run sees the data that it would have seen."""

    def __init__(self, folder: Path, seed: int, batch: int, frames_per_chunk: int) -> None:
        self.codec = BlockCodec.from_pretrained(folder / "vae")
        self.prompts = PromptEncoder(folder)
        self.seed, self.batch, self.frames_per_chunk = seed, batch, frames_per_chunk
        self.std = torch.tensor(self.codec.config.latents_std).view(1, -1, 1, 1, 1)
        self.mean = torch.tensor(self.codec.config.latents_mean).view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def draw(self, step: int) -> TrainingBatch:
        """The batch of `step`."""
        rng = np.random.default_rng((self.seed, step))
        scenes = [sample_scene(rng) for _ in range(self.batch)]
        texts = ["" if rng.random() < TEXT_DROPOUT else describe(scene, rng) for scene in scenes]
        frames = FRAMES if step % LONG_EVERY == 0 else SHORT_FRAMES
        pixels = torch.from_numpy(np.stack([render(scene, frames) for scene in scenes]))
        (dist,) = self.codec.encode(pixels.permute(0, 4, 1, 2, 3) * 2.0 - 1.0, return_dict=False)
        latents = (dist.mode() - self.mean) / self.std
        chunks = latents.shape[2] // self.frames_per_chunk
        levels = sample_levels(rng, self.batch, chunks, FLOW_SHIFT)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        padding = np.exp(rng.uniform(0.0, np.log(MAX_PADDING), self.batch))
        return TrainingBatch(
            latents=latents,
            noise=torch.randn(latents.shape, generator=generator),
            sigma=torch.from_numpy(levels.sigma).repeat_interleave(self.frames_per_chunk, 1),
            counted=torch.from_numpy(levels.counted).repeat_interleave(self.frames_per_chunk, 1).float(),
            text=PromptText(self.prompts.rows(texts), torch.from_numpy(padding).float()),
        )


def flow_loss(model: SkyReelsV2Transformer3DModel, batch: TrainingBatch) -> Tensor:
    """Mean squared error of the velocity over the counted frames (a scalar)."""
    sigma = batch.sigma[:, None, :, None, None]
    noisy = (1.0 - sigma) * batch.latents + sigma * batch.noise
    velocity = training_forward(model, noisy, batch.sigma * 1000.0, batch.text).float()
    error = (velocity - (batch.noise - batch.latents)).square().mean(dim=(1, 3, 4))
    return (error * batch.counted).sum() / batch.counted.sum().clamp(min=1.0)


def optimizers(model: SkyReelsV2Transformer3DModel) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    inner: list[torch.nn.Parameter] = []
    outer: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (inner if parameter.ndim == 2 and name.startswith("blocks.") else outer).append(parameter)
    muon = torch.optim.Muon(inner, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(outer, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    return muon, adam


def rate(step: int, progress: float) -> float:
    """Factor on the learning rate at `step`, `progress` (0..1) through the run."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * min(1.0, max(0.0, (1.0 - progress) / DECAY_SHARE))


@dataclass(slots=True)
class State:
    """A run in progress."""

    model: SkyReelsV2Transformer3DModel
    average: list[Tensor]
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    step: int
    seconds: float

    @classmethod
    def fresh(cls) -> "State":
        """Seeded, untrained."""
        model = build_transformer()
        return cls(model, [p.detach().clone() for p in model.parameters()], optimizers(model), 0, 0.0)

    def save(self, path: Path) -> None:
        """Write to `path`, never leaving half a file there."""
        part = path.with_suffix(".part")
        torch.save(
            {
                "model": self.model.state_dict(),
                "average": self.average,
                "optimizers": [o.state_dict() for o in self.optimizers],
                "step": self.step,
                "seconds": self.seconds,
            },
            part,
        )
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "State":
        """Read what `save` wrote."""
        state, kept = cls.fresh(), torch.load(path, weights_only=True)
        state.model.load_state_dict(kept["model"])
        state.average = kept["average"]
        for optimizer, saved in zip(state.optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        state.step, state.seconds = kept["step"], kept["seconds"]
        return state


def train(run: TrainingRun, resume: bool = False) -> Iterator[tuple[int, float]]:
    """Train and yield (step, loss) after every step; writes `state.pt`, `loss.csv` and the folder `pipeline`.

    Raises FileNotFoundError where `resume` is asked and `run.out` holds no `state.pt`.
    """
    torch.set_num_threads(run.threads)
    folder, checkpoint = run.out / "pipeline", run.out / "state.pt"
    if not resume:
        write_folder(folder)
    state = State.load(checkpoint) if resume else State.fresh()
    sampler = BatchSampler(folder, run.seed, run.batch, state.model.config.num_frame_per_block)
    step_loss = torch.compile(flow_loss, dynamic=False) if run.compiled else flow_loss
    before, started, saved = state.seconds, time.monotonic(), time.monotonic()
    with (run.out / "loss.csv").open("a", newline="") as log:
        writer = csv.writer(log)
        while state.step < run.steps:
            share = state.step / run.steps if run.minutes is None else state.seconds / (60.0 * run.minutes)
            if share >= 1.0:
                break
            for optimizer, base in zip(state.optimizers, (MUON_RATE, ADAM_RATE), strict=True):
                optimizer.param_groups[0]["lr"] = base * rate(state.step, share)
            with torch.autocast("cpu", torch.bfloat16):
                loss = step_loss(state.model, sampler.draw(state.step))
            advance(state, loss)
            state.seconds = before + time.monotonic() - started
            writer.writerow([state.step, run.batch, f"{loss.item():.5f}", f"{state.seconds:.1f}"])
            log.flush()
            if time.monotonic() - saved > SAVE_SECONDS:
                state.save(checkpoint)
                saved = time.monotonic()
            yield state.step, loss.item()
    state.save(checkpoint)
    export(state, folder)


def advance(state: State, loss: Tensor) -> None:
    """One optimisation step, then the average follows."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    state.step += 1
    decay = min(EMA_DECAY, (1 + state.step) / (10 + state.step))
    torch._foreach_lerp_(state.average, [p.detach() for p in state.model.parameters()], 1.0 - decay)


@torch.no_grad()
def export(state: State, folder: Path) -> None:
    """Write the averaged weights, rounded to bfloat16, as the pipeline folder's transformer."""
    model = build_transformer()
    for parameter, mean in zip(model.parameters(), state.average, strict=True):
        parameter.copy_(mean)
    model.to(torch.bfloat16).save_pretrained(folder / "transformer")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--minutes", type=float, help="end and anneal by wall clock instead")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    run = TrainingRun(args.out, args.steps, args.batch, args.threads, args.minutes, True, args.seed)
    run.out.mkdir(parents=True, exist_ok=True)
    (run.out / "run.json").write_text(json.dumps({k: str(v) for k, v in vars(args).items()}, indent=2) + "\n")
    for step, loss in train(run, args.resume):
        if step % 20 == 0:
            print(f"{time.strftime('%H:%M:%S')} step {step} loss {loss:.4f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
