"""Options that several verbs share."""

from __future__ import annotations

import argparse
import math
import re

from mccompile.policy.bind import Quantity

POLICY_HELP = "name of a shipped policy (see `mccompile policies`) or a .policy file"


def add_parameters(parser: argparse._ActionsContainer) -> None:
    """`--set NAME=VALUE`, as often as wanted."""
    parser.add_argument(
        "--set",
        dest="parameters",
        metavar="NAME=VALUE",
        type=assignment,
        action="append",
        default=[],
        help="value of a parameter of the policy, e.g. threshold=0.2 or floor=60%%",
    )


def add_backend(parser: argparse._ActionsContainer, default: str) -> None:
    """`--backend` and `--deny refusals`."""
    parser.add_argument("--backend", choices=("eager", "inductor"), default=default, help="default: %(default)s")
    add_deny(parser)


def add_place(parser: argparse._ActionsContainer) -> None:
    """`--dtype` and `--device`."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: by the device")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: cuda where there is one")


def add_deny(parser: argparse._ActionsContainer) -> None:
    """`--deny refusals`."""
    parser.add_argument("--deny", choices=("refusals",), help="fail where a part of the policy was refused")


_VALUE = re.compile(r"\s*(?P<number>[^%\s]+)\s*(?P<unit>%|steps?|frames?)?\s*")


def assignment(text: str) -> tuple[str, Quantity]:
    """`threshold=0.2`, `floor=60%` or `warmup=5 steps` as name and value."""
    name, _, value = text.partition("=")
    found = _VALUE.fullmatch(value)
    try:
        number = float(found["number"]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not (name.strip() and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"`{text}` is not NAME=NUMBER")
    unit = {"step": "steps", "frame": "frames"}.get(found["unit"] or "", found["unit"] or "")
    return name.strip(), Quantity.of(number, unit, value.strip())


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of at least 1")
    return int(text)


def add_video(video: argparse._ActionsContainer) -> None:
    """Steps, sizes, seed and schedule of a generation; what is left out is the model's own."""
    video.add_argument("--steps", type=positive, metavar="N")
    video.add_argument("--frames", type=positive, metavar="N")
    video.add_argument("--height", type=positive, metavar="PIXELS")
    video.add_argument("--width", type=positive, metavar="PIXELS")
    video.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    video.add_argument("--guidance-scale", type=float, metavar="X")
    video.add_argument("--ar-step", type=int, metavar="N", help="steps by which each chunk lags behind the one before")
    video.add_argument("--causal-block-size", type=positive, metavar="N", help="latent frames per chunk")
