"""`mccompile explain`: what a policy does, in words and as a plan of its steps; or the page of an error code."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile import ir
from mccompile.cli.failures import SETUP_FAILED
from mccompile.cli.options import MOST_FRAMES, MOST_PIXELS, MOST_STEPS, POLICY_HELP, add_parameters, location, up_to
from mccompile.cli.planned_run import WITHOUT_MODEL, steps_asked
from mccompile.cli.steps_told import steps_svg, steps_table
from mccompile.cli.terminal import say
from mccompile.cli.words import by_place, describe, whence, worth_lines
from mccompile.diagnostics.pages import UnknownCode, explain_code
from mccompile.diagnostics.render import visible
from mccompile.language.by_depth import reads_depth
from mccompile.language.extend import Merged
from mccompile.language.fmt import format_policy
from mccompile.language.load import find_policy, load_choices, load_merged
from mccompile.language.parse import parse
from mccompile.policy.bind import bind
from mccompile.policy.choosing import Chosen, load_chosen
from mccompile.policy.flow import DEFAULT_STEPS, flow_grid
from mccompile.policy.groups import bounds_of
from mccompile.policy.in_words import rules_decided
from mccompile.policy.plan_text import headings
from mccompile.policy.planner import Plan, show_plan
from mccompile.policy.reasons import StepReason, reasons
from mccompile.policy.rules import Static
from mccompile.policy.standing import sound_plan
from mccompile.policy.text import show
from mccompile.policy.within import plans_within, reasons_within

if TYPE_CHECKING:
    from mccompile.generate.worth import Worth
    from mccompile.lowering.types import LoweredModel

JSON_FORMAT = "mccompile explain 1"
MAGI_SIZE = (720, 720, 240)  # of `--stage memory` for MAGI-1


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("explain", help="explain a policy or an error code", description=__doc__)
    parser.add_argument("subject", metavar="POLICY|CODE", help=f"{POLICY_HELP}; or a code such as MC0203")
    parser.add_argument("--stage", choices=("ast", "ir", "plan", "steps", "graph", "memory"), help="print this only")
    parser.add_argument("--after", metavar="PASS", help="of `graph`: the graphs after this pass, and what it changed")
    parser.add_argument("--verify", action="store_true", help="of `graph`: check every part after every pass")
    parser.add_argument("--model", metavar="NAME", help="whose plan and graph: `embedded` or a diffusers folder")
    parser.add_argument("--json", action="store_true", help="print everything that is known as one JSON object")
    parser.add_argument("--svg", type=location, metavar="FILE", help="draw the plan into a file")
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
            sys.stdout.write(_plans(_foreseen(arguments, policy)))
        case "steps":
            foreseen = _foreseen(arguments, policy)
            for title, steps in foreseen.steps.items():
                if title:
                    say(title)
                for line in steps_table(steps):
                    say(line)
        case "memory":
            sys.stdout.write(_memory(arguments, policy))
        case "graph":
            sys.stdout.write(_graph(arguments, policy))
        case _:
            _everything(arguments, found)
    return 0


def _everything(arguments: argparse.Namespace, found: Chosen) -> None:
    """All that words, or one JSON object, can say; and the drawing."""
    foreseen = _foreseen(arguments, found.policy)
    merged = load_merged(arguments.subject, found.picks)
    if arguments.svg is not None:
        name, steps = found.policy.name, next(iter(foreseen.steps.values()))
        _draw(arguments.svg, steps_svg(f"{name}, {len(steps)} steps", steps))
    if arguments.json:
        say(json.dumps(_object(found, merged, foreseen)))
        return
    comments = parse(find_policy(arguments.subject)).comments
    choices = {n: (found.picks.get(n, words[0]), words) for n, words in load_choices(arguments.subject).items()}
    said = [visible(comment.text) for comment in comments if not comment.trailing]
    for line in describe(merged, found.policy, said, choices, found.numbers):
        say(line)
    say("\nPlan")
    sys.stdout.write(_plans(foreseen))
    say("\nShould I run this?")
    for title, made in foreseen.plans.items():
        if title:
            say(f"  {title}")
        for line in worth_lines(made, foreseen.worth, arguments.model is not None):
            say(f"  {line}")


def _plans(foreseen: ForeseenPlan) -> str:
    """The plan, or several, each under what it is of."""
    return "\n".join((f"{title}\n" if title else "") + show_plan(made) for title, made in foreseen.plans.items())


def _draw(path: Path, text: str) -> None:
    from mccompile.generate.errors import OutputRefused
    from mccompile.generate.places import put, reason

    try:
        put(path, lambda draft: draft.write_bytes(text.encode()))
    except OSError as error:
        raise OutputRefused(str(path), reason(error)) from None


def _object(found: Chosen, merged: Merged, foreseen: ForeseenPlan) -> dict[str, object]:
    policy = found.policy
    parameters = [
        {"name": p.name, "value": found.numbers.get(p.name, p.default), "from": whence(merged, p.name, found.numbers),
         "low": p.low, "high": p.high, "unit": p.unit}
        for p in policy.params
    ]  # fmt: skip
    phases = [{"name": name.strip(), "decided": at} for p in policy.phases for name, at in rules_decided(p, policy)]
    steps = {title: [asdict(step) for step in of] for title, of in foreseen.steps.items()}
    notes = [note for made in foreseen.plans.values() for note in made.notes]
    worth = foreseen.worth
    return {
        "format": JSON_FORMAT, "policy": policy.name, "picks": dict(found.picks), "parameters": parameters,
        "phases": phases, "steps": steps, "notes": notes,
        "worth": None if worth is None else asdict(worth) | {"speed_up": worth.speed_up},
    }  # fmt: skip


def _without_meaning(arguments: argparse.Namespace, stage: str | None) -> str:
    """Which option would be read by nobody, in a sentence; "" if each of them says something."""
    asked = f"`--stage {stage}`" if stage != "code" else "the page of a code"
    for option, given, stages in (
        ("--steps", arguments.steps, (None, "plan", "steps")),
        ("--size", arguments.size, ("memory",)),
        ("--model", arguments.model, (None, "plan", "steps", "graph", "memory")),
        ("--json", arguments.json or None, (None,)),
        ("--svg", arguments.svg, (None,)),
        ("--set", arguments.parameters or None, (None, "ast", "ir", "plan", "steps", "graph", "memory")),
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

    def shown(lowered: LoweredModel) -> str:
        if arguments.after is None:
            return emit(lowered)
        proved = lowered.rows.prefixes if lowered.rows is not None else frozenset()
        steps = steps_of(arguments.after, lowered.captured, lowered.policy, proved)
        return show_steps(arguments.after, policy.name, steps)

    return by_place({each.slot or "": shown(each.runner.lowered) for each in experts})


def _size_of(arguments: argparse.Namespace) -> tuple[int, int, int] | None:
    """The size that bytes are counted at: as asked, or the embedded model's; None: the pipeline's own."""
    from mccompile.generate.load import EMBEDDED
    from mccompile.models.embedded import DEFAULTS

    if arguments.size is not None or arguments.model not in (None, EMBEDDED):
        return arguments.size
    return DEFAULTS.height, DEFAULTS.width, DEFAULTS.num_frames


def _memory(arguments: argparse.Namespace, policy: ir.PolicyIR) -> str:
    """What a run needs, where there is a formula for all of it; else what the policy keeps."""
    from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
    from mccompile.generate.memory import has_formula, predict_kept, predict_memory, show_kept, show_memory
    from mccompile.generate.placement import Placement

    folder = find_folder(EMBEDDED if arguments.model is None else arguments.model)
    size = _size_of(arguments)
    if has_formula(folder):
        return show_memory(predict_memory(folder, *(size or MAGI_SIZE)))
    pipe = load_pipeline(folder, Placement.of("cpu", None, False), hollow=True)
    found = predict_kept(pipe, policy, size, dict(arguments.parameters))
    return by_place({place: show_kept(keeping) for place, keeping in found.items()})


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


@dataclass(frozen=True, slots=True)
class ForeseenPlan:
    """What is known before a run: of each transformer, and of the regions of each name (policy/groups.py).

    The keys say which; that of the only one is empty. worth: None without a model, and where there are several.
    """

    plans: Mapping[str, Plan]
    steps: Mapping[str, tuple[StepReason, ...]]
    worth: Worth | None


def _foreseen(arguments: argparse.Namespace, policy: ir.PolicyIR) -> ForeseenPlan:
    """On the model's own grid and values; without a model, what the clock alone settles."""
    numbers = dict(arguments.parameters)
    steps = steps_asked(arguments.steps, [policy])
    plans: dict[str, Plan] = {}
    why: dict[str, tuple[StepReason, ...]] = {}
    if arguments.model is None:
        grid, bounds = flow_grid(steps), bounds_of(bind(policy, numbers))
        made_by = plans_within(policy, {view: sound_plan(bound, grid) for view, bound in bounds.items()})
        why_by = reasons_within(policy, {view: reasons(bound, grid, WITHOUT_MODEL) for view, bound in bounds.items()})
        names = headings(policy, made_by)
        plans = {title: made_by[view] for view, title in names.items()}
        return ForeseenPlan(plans, {title: why_by[view] for view, title in names.items()}, None)
    import torch

    from mccompile.capture.shallow import is_hollow
    from mccompile.generate.memory import call_at, kept_by
    from mccompile.generate.worth import worth_of
    from mccompile.pipelines.experts import part_of, rows_of
    from mccompile.pipelines.finding import driver_for
    from mccompile.runtime.planning import planned, static_tables

    compiled, captured, pipe = _compiled(arguments, policy)
    inputs = captured.calls[0]
    whole = driver_for(pipe).grid(pipe, steps, call_at(_size_of(arguments)))
    for each in compiled.experts:
        rows = range(whole.steps) if each.slot is None else rows_of(pipe, each.slot, pipe.scheduler.timesteps)
        part = f"{each.slot}: {len(rows)} steps from step {rows.start} on" if each.slot is not None else ""
        if not rows:
            continue
        lowered, grid = each.runner.lowered, part_of(whole, rows)
        own = lowered.policy if reads_depth(policy) else policy  # there every block has its own region
        bounds = bounds_of(bind(own, numbers))
        static, hollow = WITHOUT_MODEL, is_hollow(each.model)
        if not hollow:  # values of a source are made by weights
            with torch.no_grad():
                static = Static(static_tables(lowered, grid, inputs), lowered.static)
        tables = None if hollow else static.tables
        made_by = {
            view: sound_plan(bound, grid) if tables is None else planned(lowered, bound, grid, tables, True)
            for view, bound in bounds.items()
        }
        why_by = reasons_within(own, {view: reasons(bound, grid, static) for view, bound in bounds.items()})
        made_by = plans_within(own, made_by)
        for view, name in headings(own, made_by).items():
            title = "\n".join(filter(None, (part, name)))
            plans[title], why[title] = made_by[view], why_by[view]
    if arguments.stage is not None or len(plans) > 1:
        return ForeseenPlan(plans, why, None)
    kept = None
    if not captured.model.opaque:
        kept = kept_by(pipe, policy, captured, _size_of(arguments), numbers).predicted
    made = next(iter(plans.values()))
    return ForeseenPlan(plans, why, worth_of(compiled, inputs, made, None if kept is None else kept.total))


def _compiled(arguments: argparse.Namespace, policy: ir.PolicyIR):  # type: ignore[no-untyped-def]
    """The policy on the model, nothing compiled; the captured model with its recorded calls; the pipeline."""
    from mccompile import api
    from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
    from mccompile.generate.placement import Placement

    model = EMBEDDED if arguments.model is None else arguments.model
    pipe = load_pipeline(find_folder(model), Placement.of("cpu", None, False), hollow=True)
    api.check_steps(pipe, policy)
    captured = api.prepare(pipe)
    compiled = api.compile(
        pipe, policy, backend="eager", captured=captured, verify=arguments.verify, **dict(arguments.parameters)
    )
    compiled.undo()
    return compiled, captured, pipe
