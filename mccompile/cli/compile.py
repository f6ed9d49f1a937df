"""`mccompile compile`: writes a policy and a model as one file, which starts without compiling again."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from mccompile.cli.options import POLICY_HELP, add_deny, add_parameters, add_place, location, positive
from mccompile.cli.progress import display
from mccompile.cli.terminal import say


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("compile", help="compile a policy into a model, as a bundle", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="`embedded` or a diffusers folder")
    parser.add_argument("policy", metavar="POLICY", help=POLICY_HELP)
    parser.add_argument("-o", "--out", type=location, required=True, metavar="BUNDLE", help="the file to write")
    add_parameters(parser)
    parser.add_argument("--causal-block-size", type=positive, metavar="N", help="latent frames per chunk")
    add_place(parser)
    add_deny(parser)
    parser.add_argument("--verify", action="store_true", help="check every part of the model after every pass")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Captures, compiles, writes."""
    from mccompile.generate.bundled import write_bundle
    from mccompile.generate.compare import capture_for
    from mccompile.generate.errors import OutputRefused
    from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
    from mccompile.generate.placement import Placement
    from mccompile.generate.places import Use, check_places
    from mccompile.generate.run import EMBEDDED_SETTINGS, Settings, call_arguments
    from mccompile.language.load import find_policy
    from mccompile.policy.bind import bind
    from mccompile.policy.choosing import load_chosen

    found = load_chosen(arguments.policy, dict(arguments.parameters))
    bind(found.policy, found.numbers)
    folder = find_folder(arguments.model)
    check_places([Use(f"--out {arguments.out}", arguments.out)], [Use(arguments.policy, Path(arguments.policy))])
    with display() as shown:
        with shown.stage("load the model"):
            pipe = load_pipeline(folder, Placement.of(arguments.device, arguments.dtype, False))
        settings = EMBEDDED_SETTINGS if arguments.model == EMBEDDED else Settings()  # a budget is met at their size
        call = call_arguments(pipe, replace(settings, causal_block_size=arguments.causal_block_size, ar_step=None))
        deny = arguments.deny == "refusals"
        with shown.stage("capture the model"):
            captured = capture_for(pipe, call)
        try:
            text = find_policy(arguments.policy).text
            compiled = write_bundle(
                arguments.out, pipe, captured, found, text, arguments.model, folder,
                shown.compiled, deny, arguments.verify,
            )  # fmt: skip
        except OSError as error:
            raise OutputRefused(str(arguments.out), (error.strerror or str(error)).lower()) from None
    for refusal in compiled.refusals:
        say(f"refused {refusal.site}: {refusal.reason}")
    say(f"wrote {arguments.out}, {arguments.out.stat().st_size / 2**20:.1f} MiB")
    return 0
