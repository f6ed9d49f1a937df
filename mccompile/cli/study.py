"""What verbs that run a model over a list of prompts have in common: the prompts, and the settings of the video."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mccompile.cli.options import check_video, video_settings

if TYPE_CHECKING:
    from mccompile.generate.run import Settings
    from mccompile.studio.explore.prompts import Prompts


def study_of(arguments: argparse.Namespace, own: tuple[str, ...], without: str) -> tuple[Prompts, Settings]:
    """The prompts of --prompts and --held-out, and the video's settings with the first of them.

    own: the embedded model's prompts, for a command line that gives none. without: the command without --prompts, in
    words. Raises OptionRefused (MC0705).
    """
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.load import EMBEDDED
    from mccompile.generate.run import EMBEDDED_SETTINGS, Settings
    from mccompile.studio.explore import prompts

    check_video(arguments)
    embedded = arguments.model == EMBEDDED
    if arguments.prompts is None and not embedded:
        raise OptionRefused(without, "only the embedded model has prompts", "give --prompts FILE")
    if arguments.prompts is None and arguments.held_out is not None:
        raise OptionRefused("--held-out", "it belongs to --prompts", "give --prompts FILE too")
    chosen = (
        prompts.split(own) if arguments.prompts is None else prompts.read_prompts(arguments.prompts, arguments.held_out)
    )
    known = {**(EMBEDDED_SETTINGS.given() if embedded else {}), **video_settings(arguments).given()}
    return chosen, Settings(**{**known, "prompt": chosen.seen[0]})  # type: ignore[arg-type]
