"""`mccompile explain`: what a policy does, in words and as a plan of its steps; or the page of an error code."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mccompile import ir
from mccompile.cli.failures import SETUP_FAILED
from mccompile.cli.options import MOST_FRAMES, MOST_PIXELS, MOST_STEPS, POLICY_HELP, add_parameters, up_to
from mccompile.cli.terminal import say
from mccompile.cli.words import describe
from mccompile.diagnostics.pages import UnknownCode, explain_code
from mccompile.language.fmt import format_policy
from mccompile.language.load import find_policy, load_choices, load_merged
from mccompile.language.parse import parse
from mccompile.language.walk import all_rules
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.choosing import load_chosen
from mccompile.policy.groups import bounds_of
from mccompile.policy.phases import Grid
from mccompile.policy.planner import Plan, plan, show_plan
from mccompile.policy.text import show

if TYPE_CHECKING:
    from mccompile.lowering.types import LoweredModel

DEFAULT_STEPS = 50
MAGI_SIZE = (720, 720, 240)  # of `--stage memory` for MAGI-1
FLOW_SHIFT = 5.0  # of the grid without a model: flow matching as SkyReels-V2 and Wan use it


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("explain", help="explain a policy or an error code", description=__doc__)
    parser.add_argument("subject", metavar="POLICY|CODE", help=f"{POLICY_HELP}; or a code such as MC0203")
    parser.add_argument("--stage", choices=("ast", "ir", "plan", "graph", "memory"), help="print this only")
    parser.add_argument("--after", metavar="PASS", help="of `graph`: the graphs after this pass, and what it changed")
    parser.add_argument("--verify", action="store_true", help="of `graph`: check every part after every pass")
    parser.add_argument("--model", metavar="NAME", help="whose plan and graph: `embedded` or a diffusers folder")
    parser.add_argument("--steps", type=up_to(MOST_STEPS), metavar="N", help=f"of the plan; default: {DEFAULT_STEPS}")
    parser.add_argument("--size", type=_size, metavar="HxWxF", help="of `memory`; default: the model's own")
    add_parameters(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """A code's page, one stage, or everything about a policy that words can say."""
    code = re.fullmatch(r"(?i)mc\d{4}", arguments.subject) is not None
    stage = "graph" if arguments.after is not None or arguments.verify else arguments.stage
    if not code and arguments.stage not in (None, stage):
        sys.stderr.write(f"--after and --verify are of `--stage graph`, not of `--stage {arguments.stage}`\n")
        return SETUP_FAILED
    without = _without_meaning(arguments, "code" if code else stage)
    if without:
        sys.stderr.write(f"{without}\n")
        return SETUP_FAILED
    if code:
        return _explain_code(arguments.subject)
    found = load_chosen(arguments.subject, dict(arguments.parameters))
    policy, arguments.parameters = found.policy, tuple(found.numbers.items())
    bind(policy, found.numbers)
    match stage:
        case "ast":
            sys.stdout.write(format_policy(parse(find_policy(arguments.subject))))
        case "ir":
            sys.stdout.write(show(policy))
        case "plan":
            sys.stdout.write(_plans(arguments, policy))
        case "memory":
            sys.stdout.write(_memory(arguments, policy))
        case "graph":
            sys.stdout.write(_graph(arguments, policy))
        case _:
            comments = parse(find_policy(arguments.subject)).comments
            choices = {n: (found.picks.get(n, words[0]), words) for n, words in load_choices(arguments.subject).items()}
            merged = load_merged(arguments.subject, found.picks)
            for line in describe(merged, policy, [c.text for c in comments if not c.trailing], choices):
                say(line)
            say("\nPlan")
            sys.stdout.write(_plans(arguments, policy))
    return 0


def _without_meaning(arguments: argparse.Namespace, stage: str | None) -> str:
    """Which option would be read by nobody, in a sentence; "" if each of them says something."""
    asked = f"`--stage {stage}`" if stage != "code" else "the page of a code"
    for option, given, stages in (
        ("--steps", arguments.steps, (None, "plan")),
        ("--size", arguments.size, ("memory",)),
        ("--model", arguments.model, (None, "plan", "graph", "memory")),
        ("--set", arguments.parameters or None, (None, "ast", "ir", "plan", "graph", "memory")),
        ("--after", arguments.after, ("graph",)),
        ("--verify", arguments.verify or None, ("graph",)),
    ):
        if given is not None and stage not in stages:
            return f"{option} means nothing for {asked if stage is not None else 'a policy without `--stage`'}"
    return ""


def _graph(arguments: argparse.Namespace, policy: ir.PolicyIR) -> str:
    """The graphs of the policy on the model, or those that one pass made, with the changes."""
    from mccompile.lowering.after import place_of, show_steps, steps_of
    from mccompile.lowering.emit import emit

    if arguments.after is not None:
        place_of(arguments.after)
    experts = _compiled(arguments, policy)[0].experts
    if arguments.after is None:
        graphs = {emit(each.runner.lowered): each.slot for each in experts}  # those that are built alike: once
        return "".join(f"# {slot}\n{text}" if len(graphs) > 1 else text for text, slot in graphs.items())
    lowered = experts[0].runner.lowered
    proved = lowered.rows.prefixes if lowered.rows is not None else frozenset()
    return show_steps(arguments.after, policy.name, steps_of(arguments.after, lowered.captured, lowered.policy, proved))


def _memory(arguments: argparse.Namespace, policy: ir.PolicyIR) -> str:
    """What a run needs, where there is a formula for all of it; else what the policy keeps."""
    from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
    from mccompile.generate.memory import has_formula, predict_kept, predict_memory, show_kept, show_memory
    from mccompile.generate.placement import Placement
    from mccompile.models.embedded import DEFAULTS

    model = EMBEDDED if arguments.model is None else arguments.model
    folder, size = find_folder(model), arguments.size
    if model == EMBEDDED and size is None:
        size = DEFAULTS.height, DEFAULTS.width, DEFAULTS.num_frames
    if has_formula(folder):
        return show_memory(predict_memory(folder, *(size or MAGI_SIZE)))
    pipe = load_pipeline(folder, Placement.of("cpu", None, False))
    return show_kept(predict_kept(pipe, policy, size, dict(arguments.parameters)))


def _size(text: str) -> tuple[int, int, int]:
    """Height and width in pixels and a number of video frames."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"`{text}` is not HEIGHTxWIDTHxFRAMES, such as 720x720x240")
    height, width, frames = text.split("x")
    return up_to(MOST_PIXELS)(height), up_to(MOST_PIXELS)(width), up_to(MOST_FRAMES)(frames)


def _explain_code(code: str) -> int:
    try:
        sys.stdout.write(explain_code(code))
    except UnknownCode as error:
        sys.stderr.write(f"{error}\n")
        return SETUP_FAILED
    return 0


def flow_grid(steps: int) -> Grid:
    """Flow matching's grid of timesteps and sigmas, shifted, from noise to data."""
    even = [1 - i * (1 - 1 / 1000) / steps for i in range(steps)]
    sigmas = tuple(FLOW_SHIFT * s / (1 + (FLOW_SHIFT - 1) * s) for s in even)
    return Grid(steps, tuple(1000 * s for s in sigmas), sigmas)


def _steps(arguments: argparse.Namespace, policy: ir.PolicyIR) -> int:
    """As asked; else as many as a step mask covers; else the default."""
    masks = [len(rule.compute) for rule in all_rules(policy) if isinstance(rule, ir.StepMask)]
    return int(arguments.steps or min(masks, default=DEFAULT_STEPS))


def _plans(arguments: argparse.Namespace, policy: ir.PolicyIR) -> str:
    """The plan, or one for the regions of each name. The grid and the values are those of the model.

    Without a model, it is what the clock alone settles. Where two transformers take turns, each has its own.
    """
    bounds, makers = bounds_of(bind(policy, dict(arguments.parameters))), _planners(arguments, policy)
    texts = [
        part + (f"regions {group}\n" if len(bounds) > 1 else "") + show_plan(make(bounds[group]))
        for part, make in makers.items()
        for group in bounds
    ]
    return "\n".join(texts)


def _planners(arguments: argparse.Namespace, policy: ir.PolicyIR) -> dict[str, Callable[[BoundPolicy], Plan]]:
    """What makes the plan of each transformer, by a line that says which; that line is empty for the only one."""
    steps = _steps(arguments, policy)
    if arguments.model is None:
        return {"": lambda bound: plan(bound, flow_grid(steps), {}, frozenset())}
    import torch

    from mccompile.pipelines.experts import part_of, rows_of
    from mccompile.pipelines.grids import grid_of
    from mccompile.runtime.planning import make_plan

    def made(lowered: LoweredModel, grid: Grid, bound: BoundPolicy) -> Plan:
        with torch.no_grad():
            return make_plan(lowered, bound, grid, inputs, True)

    compiled, inputs, pipe = _compiled(arguments, policy)
    pipe.scheduler.set_timesteps(steps)
    found: dict[str, Callable[[BoundPolicy], Plan]] = {}
    whole = grid_of(pipe.scheduler)
    for each in compiled.experts:
        rows = range(whole.steps) if each.slot is None else rows_of(pipe, each.slot, pipe.scheduler.timesteps)
        part = f"{each.slot}: {len(rows)} steps from step {rows.start} on\n" if each.slot is not None else ""
        make = partial(made, each.runner.lowered, part_of(whole, rows))
        found |= {part: make} if rows else {}
    return found


def _compiled(arguments: argparse.Namespace, policy: ir.PolicyIR):  # type: ignore[no-untyped-def]
    """The policy on the model, nothing compiled; one recorded call; the pipeline."""
    from mccompile import api
    from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
    from mccompile.generate.placement import Placement

    model = EMBEDDED if arguments.model is None else arguments.model
    pipe = load_pipeline(find_folder(model), Placement.of("cpu", None, False))
    captured = api.prepare(pipe)
    compiled = api.compile(
        pipe, policy, backend="eager", captured=captured, verify=arguments.verify, **dict(arguments.parameters)
    )
    compiled.undo()
    return compiled, captured.calls[0], pipe
