"""`mccompile report`: a recorded run as one HTML page, and a summary."""

from __future__ import annotations

import argparse

from mccompile.cli.options import location
from mccompile.cli.recording import PAGE
from mccompile.cli.terminal import say


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("report", help="show a recorded run as one HTML page", description=__doc__)
    parser.add_argument("run_folder", type=location, metavar="RUN", help="what `mccompile generate --record` wrote")
    parser.add_argument("--out", type=location, metavar="FILE", help="default: report.html in the folder")
    parser.add_argument("--figure", type=location, metavar="FILE", help="also the grid alone, as .png or .svg")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the page; says in lines what it shows in pictures."""
    from mccompile.generate.places import Results, Use, check_places
    from mccompile.studio.report.figure import Figure, check_figure
    from mccompile.studio.report.page import page_data, write_page
    from mccompile.studio.report.record import FILES, read_run

    if arguments.figure is not None:
        check_figure(arguments.figure)
    record = read_run(arguments.run_folder)
    target = arguments.out or arguments.run_folder / PAGE
    kept = [Use("RUN", arguments.run_folder / name) for name in FILES]
    writes = [Use(f"--out {target}", target)]
    if arguments.figure is not None:
        writes.append(Use(f"--figure {arguments.figure}", arguments.figure))
    check_places(writes, kept)
    results = Results(say)
    data = page_data(record)
    counts = {action: sum(e.action == action for e in record.events) for action in ("full", "partial", "reuse", "skip")}
    say(record.said)
    say("chunks of all calls: " + ", ".join(f"{count} {_WORDS[action]}" for action, count in counts.items()))
    if data["psnr"]:
        say(f"worst frame {data['worst']}; {len(record.refusals)} parts of the policy were refused")
    results.put(target, lambda path: write_page(record, path))
    if arguments.figure is not None:
        results.put(arguments.figure, Figure.of(record).write)
    results.finish()
    return 0


_WORDS = {"full": "computed", "partial": "computed in part", "reuse": "reused", "skip": "waiting"}
