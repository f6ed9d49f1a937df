"""`mccompile calibrate`: measures a model, and writes the polynomials and tables that its policies name."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.options import POLICY_HELP, add_place, add_video, location, up_to
from mccompile.cli.progress import display
from mccompile.cli.study import study_of
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.studio.calibrate.job import CalibrationJob

MOST_AGES = 50


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("calibrate", help="fit polynomials and tables for a model", description=__doc__)
    parser.add_argument("model", nargs="?", default="embedded", metavar="MODEL", help="default: %(default)s")
    parser.add_argument("--signal", action="append", default=[], metavar="DISTANCE", help=_SIGNAL_HELP)
    parser.add_argument("--policy", metavar="POLICY", help=f"whose layers and signals hold: {POLICY_HELP}")
    parser.add_argument("--prompts", type=location, metavar="FILE", help="a prompt a line; default: the model's own")
    parser.add_argument("--held-out", type=location, metavar="FILE", help="default: the last quarter of the prompts")
    parser.add_argument("--out", type=location, metavar="FILE", help="default: NAME.toml")
    parser.add_argument("--name", metavar="NAME", help="how the names of the sets begin; default: that of the model")
    parser.add_argument("--ages", type=up_to(MOST_AGES), default=6, metavar="N", help=_AGES_HELP)
    parser.add_argument("--sensitivities", action="store_true", help="ask the model once more at each step (SenCache)")
    parser.add_argument("--least-r2", type=_share, default=0.5, metavar="X", help="default: %(default)s")
    add_video(parser.add_argument_group("the video (what is left out is the model's own)"))
    how = parser.add_argument_group("how")
    add_place(how)
    how.add_argument("--backend", choices=("eager", "inductor"), default="inductor", help="default: %(default)s")
    parser.set_defaults(run=run)


_SIGNAL_HELP = "such as `rel_l1(modulation)`; may be repeated; default: those of the policy's polynomials, or this one"
_AGES_HELP = "earlier steps that each step is compared with; default: %(default)s"


def _share(text: str) -> float:
    """A number from 0 to 1."""
    if not re.fullmatch(r"[01]?\.?\d{0,6}", text) or not any(c.isdigit() for c in text) or float(text) > 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 0 to 1")
    return float(text)


def run(arguments: argparse.Namespace) -> int:
    """Measures, fits, writes; the same command goes on after a stop."""
    from mccompile.studio.calibrate.job import run as carry_out
    from mccompile.studio.calibrate.writing import told

    job = _job(arguments)
    with display() as shown:
        sets = carry_out(job, shown.task, shown.compiled, say)
    for line in told(sets):
        say(line)
    say(f"wrote {job.out}")
    return 0


def _job(arguments: argparse.Namespace) -> CalibrationJob:
    """The calibration that a command line asks for."""
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.load import find_folder
    from mccompile.generate.placement import Placement
    from mccompile.generate.places import Use, check_places
    from mccompile.language.load import load_policy
    from mccompile.studio.calibrate.asked import asked_by
    from mccompile.studio.calibrate.job import CalibrationJob
    from mccompile.studio.calibrate.prompts import EMBEDDED_PROMPTS

    chosen, settings = study_of(arguments, EMBEDDED_PROMPTS, "without --prompts")
    name = arguments.name or re.sub(r"\W+", "_", Path(arguments.model).name).strip("_").lower() or "model"
    if not re.fullmatch(r"[A-Za-z][\w.]*", name):
        raise OptionRefused(f"--name {name}", "names of sets are letters, digits, dots and `_`", "give another name")
    out = arguments.out or Path(f"{name}.toml")
    if out.suffix != ".toml":
        raise OptionRefused(f"--out {out}", "policies name files that end in .toml", f"give {out.with_suffix('.toml')}")
    reads = [] if arguments.prompts is None else [Use("--prompts", arguments.prompts)]
    check_places([Use(f"--out {out}", out)], reads)
    policy = None if arguments.policy is None else load_policy(arguments.policy)
    return CalibrationJob(
        command=shlex.join(["mccompile", *arguments.words]),
        name=name,
        asked=asked_by(arguments.signal, policy),
        model=arguments.model,
        folder=find_folder(arguments.model),
        place=Placement.of(arguments.device, arguments.dtype, False),
        settings=settings,
        seed=arguments.seed,
        prompts=chosen,
        out=out,
        backend=arguments.backend,
        ages=arguments.ages,
        sensitive=arguments.sensitivities,
        least_r2=arguments.least_r2,
    )
