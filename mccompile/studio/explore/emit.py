"""A found point as a policy file that says at its head where its numbers come from."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.language.fmt import format_policy
from mccompile.language.parse import parse
from mccompile.studio.explore.outcome import EQUAL, Outcome, Trial

_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an emitted policy rests on. about: lines of settings and versions. held_out: measured after the search."""

    goal: str
    trial: Trial
    trials: int
    seen: Sequence[str]
    held_out_prompts: Sequence[str]
    held_out: Outcome
    about: Sequence[str]


def policy_text(base: str, policy: ir.PolicyIR, fixed: Mapping[str, float], evidence: Evidence, target: Path) -> str:
    """The policy file: `extends` the searched one, with the found values as defaults, after the evidence.

    base: a shipped policy's name, or a path, which is written relative to the file's own folder. Each choice of the
    searched policy has one alternative.
    """
    values = {**fixed, **evidence.trial.point.values}
    picks = "\n".join(f"choose {name} = {word}" for name, word in evidence.trial.point.picks.items())
    named = base if "/" not in base and not base.endswith(".policy") else _relative(base, target)
    params = "\n".join(f"param {p.name} = {_number(p, values[p.name])}" for p in policy.params if p.name in values)
    head = "\n".join(f"# {line}".rstrip() for line in _comment(evidence))
    text = f"policy {name_of(target)} extends {named} {{\n{head}\n{params}\n{picks}\n}}\n"
    return format_policy(parse(Source.of_text(text, str(target))))


def with_evidence(text: str, evidence: Evidence, target: Path) -> str:
    """A policy's own text with the evidence at its head."""
    head = "\n".join(f"# {line}".rstrip() for line in _comment(evidence))
    opened, rest = text.split("{\n", 1)
    return format_policy(parse(Source.of_text(f"{opened}{{\n{head}\n{rest}", str(target))))


def name_of(target: Path) -> str:
    """The name of the policy in a file: the file's own, with what no name has left out."""
    name = re.sub(r"\W", "_", target.stem)
    return name if re.match(r"[A-Za-z_]", name) else f"_{name}"


def _relative(base: str, target: Path) -> str:
    return f'"{os.path.relpath(Path(base).resolve(), target.resolve().parent)}"'


def _number(param: ir.Param, value: float) -> str:
    if param.unit == "%":
        return f"{100 * value:g}%"
    return f"{value:g} {param.unit}".rstrip()


def _comment(evidence: Evidence) -> list[str]:
    lines = [
        f"Found by `mccompile explore`: {evidence.goal}, trial {evidence.trial.number} of {evidence.trials}.",
        f"Searched, prompts: {len(evidence.seen)}; {said(evidence.trial.outcome)}.",
        f"Held out and measured afterwards, prompts: {len(evidence.held_out_prompts)}; {said(evidence.held_out)}.",
        *evidence.about,
        *(f"prompt: {prompt}" for prompt in evidence.seen),
        *(f"held out: {prompt}" for prompt in evidence.held_out_prompts),
    ]
    return [part for line in lines for part in textwrap.wrap(line, _WIDTH, subsequent_indent="  ")]


def in_dimensions(outcome: Outcome) -> str:
    """VBench's dimensions of the policy's videos, each beside vanilla's; "" where none was asked for."""
    return ", ".join(f"{name} {own:.4f} ({outcome.vanilla_vbench[name]:.4f})" for name, own in outcome.vbench.items())


def said(outcome: Outcome) -> str:
    """An outcome in a line."""
    quality = "equal" if outcome.psnr >= EQUAL else f"{outcome.psnr:.2f} dB"
    judged = "" if outcome.judged is None else f", judge {outcome.judged:.2f}"
    seen = f", VBench {in_dimensions(outcome)}" if outcome.vbench else ""
    return (
        f"{outcome.speed_up:.2f}x fewer FLOPs, {outcome.vanilla_seconds / outcome.seconds:.2f}x in time, "
        f"worst prompt {quality}, SSIM {outcome.ssim:.4f}{judged}{seen}"
    )
