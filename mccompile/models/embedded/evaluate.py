"""Judge the embedded model: `python -m mccompile.models.embedded.evaluate --prompts 50 [--sheet FILE]`.

Generates one video per prompt and seed by the stock diffusers pipeline and prints the share with the right colour and
the right motion. `--fast` puts the training forward (proved equal to diffusers' in the tests), compiled, in bfloat16,
under the pipeline, which a busy CPU finishes several times sooner.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline
from numpy.typing import NDArray
from torch import Tensor

from mccompile.models.embedded import DEFAULTS, EMBEDDED_FOLDER
from mccompile.models.embedded.forward import PromptText, training_forward
from mccompile.models.embedded.judge import Verdict, judge
from mccompile.models.embedded.prompts import ROWS
from mccompile.models.embedded.scenes import COLOURS, MOTIONS, describe, sample_scene


@dataclass(frozen=True, slots=True)
class Sample:
    """A generated video [F, H, W, 3] in [0, 1] and its verdict."""

    prompt: str
    seed: int
    video: NDArray[np.float32]
    verdict: Verdict


def evaluation_prompts(count: int) -> list[str]:
    """`count` prompts that go through colours and motions evenly; seeded, and none is a stored training sample."""
    rng = np.random.default_rng(20260502)
    prompts: list[str] = []
    while len(prompts) < count:
        scene = sample_scene(rng)
        wanted = list(COLOURS)[len(prompts) % len(COLOURS)], list(MOTIONS)[len(prompts) % len(MOTIONS)]
        if (scene.colour, scene.motion) == wanted or len(prompts) % 12 >= 6:
            prompts.append(describe(scene, rng))
    return prompts


def generate(
    pipe: SkyReelsV2DiffusionForcingPipeline,
    prompts: list[str],
    seeds: list[int],
    steps: int,
    ar_step: int,
    guidance: float,
) -> NDArray[np.float32]:
    """Videos [B, F, H, W, 3] in [0, 1] of `prompts`, each from its own seed."""
    result = pipe(
        prompt=prompts,
        num_frames=DEFAULTS.num_frames,
        height=DEFAULTS.height,
        width=DEFAULTS.width,
        num_inference_steps=steps,
        ar_step=ar_step,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    )
    return np.asarray(result.frames, dtype=np.float32)


def use_training_forward(pipe: SkyReelsV2DiffusionForcingPipeline) -> None:
    """Let `pipe.transformer` compute by the compiled `training_forward` under bfloat16 autocast."""
    model = pipe.transformer
    compiled = torch.compile(training_forward, dynamic=False)

    def forward(
        hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: object
    ) -> tuple[Tensor]:
        rows = encoder_hidden_states[:, :ROWS]
        padding = torch.full((len(rows),), float(encoder_hidden_states.shape[1] - ROWS))
        with torch.autocast("cpu", torch.bfloat16):
            return (compiled(model, hidden_states, timestep.float(), PromptText(rows, padding)).float(),)

    model.forward = forward


def evaluate(
    folder: Path, count: int, steps: int, ar_step: int, guidance: float, batch: int, fast: bool
) -> Iterator[Sample]:
    """Generate and judge `count` videos, `batch` at a time."""
    pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if fast:
        use_training_forward(pipe)
    prompts = evaluation_prompts(count)
    for start in range(0, count, batch):
        chosen = prompts[start : start + batch]
        seeds = list(range(1000 + start, 1000 + start + len(chosen)))
        videos = generate(pipe, chosen, seeds, steps, ar_step, guidance)
        for prompt, seed, video in zip(chosen, seeds, videos, strict=True):
            yield Sample(prompt, seed, video, judge(video, prompt))


def sheet(samples: list[Sample], frames: int = 8) -> NDArray[np.uint8]:
    """A picture with one row per sample: `frames` evenly spaced frames, enlarged twice, a mark before each row.

    The mark is green where colour and motion are right, yellow where one is, red where none is.
    """
    marks = {2: (40, 180, 60), 1: (230, 190, 40), 0: (210, 40, 40)}
    rows = []
    for sample in samples:
        index = np.linspace(0, len(sample.video) - 1, frames).round().astype(int)
        strip = np.concatenate(list(sample.video[index]), axis=1)
        picture = (strip.clip(0, 1) * 255).round().astype(np.uint8).repeat(2, 0).repeat(2, 1)
        mark = marks[sample.verdict.colour_right + sample.verdict.motion_right]
        rows.append(np.concatenate([np.full((len(picture), 12, 3), mark, np.uint8), picture], axis=1))
    return np.concatenate(rows, axis=0)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=EMBEDDED_FOLDER)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--steps", type=int, default=DEFAULTS.num_inference_steps)
    parser.add_argument("--ar-step", type=int, default=DEFAULTS.ar_step)
    parser.add_argument("--guidance", type=float, default=DEFAULTS.guidance_scale)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    samples = []
    for sample in evaluate(
        args.folder, args.prompts, args.steps, args.ar_step, args.guidance, args.batch, args.fast
    ):
        samples.append(sample)
        seen = f"{sample.verdict.colour_seen} {sample.verdict.motion_seen}"
        print(f"{sample.seed} {sample.prompt} -> {seen} ({sample.verdict.confidence:.2f})", flush=True)  # noqa: T201
    colour = float(np.mean([s.verdict.colour_right for s in samples]))
    motion = float(np.mean([s.verdict.motion_right for s in samples]))
    print(f"right colour {colour:.0%}  right motion {motion:.0%}  of {len(samples)}")  # noqa: T201
    if args.sheet is not None:
        from PIL import Image

        Image.fromarray(sheet(samples)).save(args.sheet)
    if args.json is not None:
        rows = [{"prompt": s.prompt, "seed": s.seed, **asdict(s.verdict)} for s in samples]
        args.json.write_text(json.dumps({"colour": colour, "motion": motion, "samples": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
