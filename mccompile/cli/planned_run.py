"""The run that plans are made for: its grid, and what is known of a model's static values on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.language.walk import all_rules
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.choosing import load_chosen
from mccompile.policy.evaluate import Grid
from mccompile.policy.flow import DEFAULT_STEPS, flow_grid
from mccompile.policy.planner import run_problems
from mccompile.policy.rules import Static

WITHOUT_MODEL = Static({}, frozenset())


def steps_asked(asked: int | None, policies: Sequence[ir.PolicyIR], default: int = DEFAULT_STEPS) -> int:
    """As asked; else as many as the step masks cover; else the default."""
    masks = [len(r.compute) for policy in policies for r in all_rules(policy) if isinstance(r, ir.StepMask)]
    return asked or min(masks, default=default)


def bound_policy(policy: str, values: Sequence[tuple[str, float | str]]) -> BoundPolicy:
    """A policy under the picks and numbers of `--set`. Raises PolicyError as `load_chosen` and `bind` do."""
    found = load_chosen(policy, dict(values))
    return bind(found.policy, found.numbers)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A grid, and what is known before a run on it."""

    grid: Grid
    static: Static


def run_of(arguments: argparse.Namespace, policies: Sequence[BoundPolicy]) -> PlannedRun:
    """The run of `--steps` on `--model`; without a model, what the clock alone settles.

    Raises PolicyError (MC0305 to MC0307) with all that the policies cannot do in so many steps.
    """
    steps = steps_asked(arguments.steps, [bound.ir for bound in policies])
    if arguments.model is None:
        run = PlannedRun(flow_grid(steps), WITHOUT_MODEL)
    else:
        run = _on_model(arguments, policies, steps)
    problems = [problem for bound in policies for problem in run_problems(bound, run.grid)]
    if problems:
        raise PolicyError(problems)
    return run


def _on_model(arguments: argparse.Namespace, policies: Sequence[BoundPolicy], steps: int) -> PlannedRun:
    import torch

    from mccompile import api
    from mccompile.capture.shallow import is_hollow
    from mccompile.generate.load import find_folder, load_pipeline
    from mccompile.generate.placement import Placement
    from mccompile.pipelines.finding import driver_for
    from mccompile.runtime.planning import static_tables

    pipe = load_pipeline(find_folder(arguments.model), Placement.of("cpu", None, False), hollow=True)
    for bound in policies:
        api.check_steps(pipe, bound.ir)
    captured = api.prepare(pipe)
    grid = driver_for(pipe).grid(pipe, steps, {})
    if is_hollow(pipe.transformer):  # values of a source are made by weights
        return PlannedRun(grid, WITHOUT_MODEL)
    tables: dict[ir.Change, tuple[float, ...]] = {}
    sources: list[frozenset[str]] = []
    for bound in policies:
        parameters: dict[str, Any] = dict(bound.values)
        compiled = api.compile(pipe, bound.ir, backend="eager", captured=captured, **parameters)
        compiled.undo()
        lowered = compiled.runner.lowered
        with torch.no_grad():
            tables |= static_tables(lowered, grid, captured.calls[0])
        sources.append(lowered.static)
    return PlannedRun(grid, Static(tables, frozenset.intersection(*sources)))
