"""Options that several verbs share."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.terminal import say
from mccompile.policy.bind import Quantity

if TYPE_CHECKING:
    from mccompile.generate.run import Settings

POLICY_HELP = "name of a shipped policy (see `mccompile policies`) or a .policy file"


def add_parameters(parser: argparse._ActionsContainer) -> None:
    """`--set NAME=VALUE`, as often as wanted: a number for a parameter, a word for a choice."""
    parser.add_argument(
        "--set",
        dest="parameters",
        metavar="NAME=VALUE",
        type=chosen,
        action="append",
        default=[],
        help="value of a parameter or alternative of a choice: threshold=0.2, floor=60%%, cell=chunk",
    )


def add_two_parameters(parser: argparse._ActionsContainer) -> None:
    """`--set-a` and `--set-b`, for a verb of two policies A and B."""
    for which in "ab":
        parser.add_argument(
            f"--set-{which}",
            dest=f"parameters_{which}",
            metavar="NAME=VALUE",
            type=chosen,
            action="append",
            default=[],
            help=f"value of a parameter, or alternative of a choice, of {which.upper()}",
        )


def add_backend(parser: argparse._ActionsContainer, default: str) -> None:
    """`--backend` and `--deny refusals`."""
    parser.add_argument("--backend", choices=("eager", "inductor"), default=default, help="default: %(default)s")
    add_deny(parser)


def add_place(parser: argparse._ActionsContainer) -> None:
    """`--dtype` and `--device`."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "auto"),
        help="default: float32 on a CPU, bfloat16 on a GPU; auto: the faster of these two on this CPU, by measurement",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: cuda where there is one")


def settle_dtype(arguments: argparse.Namespace) -> None:
    """Puts what `--dtype auto` stands for in its place, and says it. On a GPU it is the default."""
    if vars(arguments).get("dtype") != "auto":
        return
    import torch

    from mccompile.backend.dtypes import dtype_times

    arguments.dtype = None
    if arguments.device == "cpu" or not torch.cuda.is_available():
        times = dtype_times()
        arguments.dtype = times.fast
        say(times.in_words())


def add_deny(parser: argparse._ActionsContainer) -> None:
    """`--deny refusals`."""
    parser.add_argument("--deny", choices=("refusals",), help="fail where a part of the policy was refused")


_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_VALUE = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>%|steps?|frames?)?\s*")


_WORD = re.compile(r"[A-Za-z_]\w*")


def chosen(text: str) -> tuple[str, Quantity | str]:
    """What `assignment` reads, or `cell=chunk` as the names of a choice and of its alternative."""
    name, _, word = (part.strip() for part in text.partition("="))
    if name and _WORD.fullmatch(word) and word.lower() not in ("nan", "inf", "infinity"):
        return name, word
    return assignment(text)


def assignment(text: str) -> tuple[str, Quantity]:
    """`threshold=0.2`, `floor=60%` or `warmup=5 steps` as name and value."""
    name, _, value = text.partition("=")
    found = _VALUE.fullmatch(value)
    number = float(found["number"]) if found else math.nan
    if found is None or not (name.strip() and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"`{text}` is neither NAME=NUMBER nor NAME=ALTERNATIVE")
    unit = {"step": "steps", "frame": "frames"}.get(found["unit"] or "", found["unit"] or "")
    return name.strip(), Quantity.of(number, unit, value.strip())


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text:.40}` is not a whole number of at least 1")
    return int(text)


def step_range(text: str) -> range:
    """`0..4` as steps 0 to 4, `7` as step 7 alone."""
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first:
        raise argparse.ArgumentTypeError(f"`{text}` is no range of steps such as 0..4")
    return range(first, last + 1)


def up_to(most: int) -> Callable[[str], int]:
    """Reads a whole number from 1 to `most`: a larger one would only fail later, after much work."""

    def count(text: str) -> int:
        number = positive(text)
        if number > most:
            raise argparse.ArgumentTypeError(f"`{text}` is not a whole number from 1 to {most:,}")
        return number

    return count


MOST_STEPS = 10_000  # schedules are made of 1,000 timesteps
MOST_PIXELS = 16_384  # of a side, in H.264
MOST_FRAMES = 100_000  # an hour at 24 a second
MOST_THREADS = 1024
MOST_FPS = 1000  # what the containers and players of videos count with
SEEDS = range(-(2**63), 2**64)  # what torch takes


def check_video(arguments: argparse.Namespace) -> None:
    """Raises OptionRefused (MC0705) for numbers of `add_video` that mean nothing."""
    from mccompile.generate.errors import OptionRefused

    scale, lag, seed = arguments.guidance_scale, arguments.ar_step, arguments.seed
    if scale is not None and not math.isfinite(scale):
        raise OptionRefused(f"--guidance-scale {scale}", "it is no finite number", "give a number such as 6")
    if lag is not None and lag < 0:
        why = "no chunk lags behind the one before by less than no step"
        raise OptionRefused(f"--ar-step {lag}", why, "give a whole number of at least 0")
    if arguments.strength is not None and not 0 < arguments.strength <= 1:
        why = "it is the share of the steps that run"
        raise OptionRefused(f"--strength {arguments.strength}", why, "give a number above 0 and at most 1")
    if seed not in SEEDS:
        raise OptionRefused(f"--seed {seed}", "a seed has 64 bits", "give a number from 0 to 2^64 - 1")


def check_fps(fps: int | None) -> None:
    """Raises OptionRefused (MC0705) for a rate that no video file has."""
    from mccompile.generate.errors import OptionRefused

    if fps is not None and fps > MOST_FPS:
        raise OptionRefused(f"--fps {fps}", f"a video has at most {MOST_FPS} frames a second", "give a rate such as 24")


def vbench_dimensions(text: str) -> tuple[str, ...]:
    """Names of dimensions of VBench, with commas between them."""
    from mccompile.metrics.vbench_process import read_dimensions

    try:
        return read_dimensions(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def location(text: str) -> Path:
    """The place of a file or a folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; give the name of a file or of a folder")
    return Path(text)


def add_video(video: argparse._ActionsContainer) -> None:
    """Steps, sizes, seed and schedule of a generation; what is left out is the model's own."""
    video.add_argument("--steps", type=up_to(MOST_STEPS), metavar="N")
    video.add_argument("--frames", type=up_to(MOST_FRAMES), metavar="N")
    video.add_argument("--height", type=up_to(MOST_PIXELS), metavar="PIXELS")
    video.add_argument("--width", type=up_to(MOST_PIXELS), metavar="PIXELS")
    video.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    video.add_argument("--guidance-scale", type=float, metavar="X")
    video.add_argument("--ar-step", type=int, metavar="N", help="steps by which each chunk lags behind the one before")
    video.add_argument("--causal-block-size", type=positive, metavar="N", help="latent frames per chunk")
    video.add_argument("--image", metavar="FILE", help="the image that the video starts from")
    video.add_argument("--last-image", metavar="FILE", help="the image that it ends with")
    video.add_argument("--video", metavar="FILE", help="the video that it is made from")
    video.add_argument("--strength", type=float, metavar="X", help="how much of a given video or image changes, 0 to 1")


def video_names(arguments: argparse.Namespace) -> dict[str, object]:
    """What the options of `add_video` were given, but for the seed, by diffusers' names."""
    names = {
        "num_inference_steps": arguments.steps,
        "num_frames": arguments.frames,
        "height": arguments.height,
        "width": arguments.width,
        "guidance_scale": arguments.guidance_scale,
        "ar_step": arguments.ar_step,
        "causal_block_size": arguments.causal_block_size,
        "strength": arguments.strength,
        "image": arguments.image,
        "last_image": arguments.last_image,
        "video": arguments.video,
    }
    return {name: value for name, value in names.items() if value is not None}


def video_settings(arguments: argparse.Namespace) -> Settings:
    """The same as settings of a generation; the rest is left to the model."""
    from mccompile.generate.run import Settings

    return Settings(**video_names(arguments))  # type: ignore[arg-type]
