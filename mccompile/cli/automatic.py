"""`--policy auto:30dB`: the policy of a stored search that meets a goal on this model, video and device."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mccompile.cli.explore import goals_of
from mccompile.cli.generate_job import settings_of
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.ir import PolicyIR

AUTO = "auto:"


def automatic(arguments: argparse.Namespace, model: str, named: str) -> tuple[PolicyIR, tuple[tuple[str, float], ...]]:
    """The stored policy, which is told; and the values that the command line gives its parameters.

    Raises OptionRefused for words that are no goal, and for a picked alternative: a stored policy has none open;
    NotCalibrated (MC0745) where nothing that is stored meets the goal.
    """
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.load import EMBEDDED
    from mccompile.generate.placement import Placement
    from mccompile.studio.explore.calibrated import Setting, pick
    from mccompile.studio.explore.emit import said

    (goal,) = goals_of([named.removeprefix(AUTO)])
    for name, word in arguments.parameters:
        if isinstance(word, str):
            raise OptionRefused(f"--set {name}={word}", "a stored policy has no choice open", "leave it out")
    prompt = arguments.prompt or (None if arguments.prompts is None else "")  # the set is for any prompt
    place = Placement.of(arguments.device, arguments.dtype, arguments.cpu_offload)
    found = pick(goal, Setting.of(model, settings_of(arguments, model == EMBEDDED, prompt), place))
    say(f"{named} is {found.settings}: on held-out prompts {said(found.held_out)}")
    return found.policy, tuple(arguments.parameters)
