"""`mccompile report`: a recorded run as one HTML page, and a summary."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mccompile.cli.options import location
from mccompile.cli.recording import PAGE
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.studio.report.record import Record


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("report", help="show a recorded run as one HTML page", description=__doc__)
    parser.add_argument("run_folder", type=location, metavar="RUN", help="what `mccompile generate --record` wrote")
    parser.add_argument("--out", type=location, metavar="FILE", help="default: report.html in the folder")
    parser.add_argument("--figure", type=location, metavar="FILE", help="also the grid alone, as .png, .svg or .mp4")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the page; says in lines what it shows in pictures."""
    from mccompile.generate.places import Results, Use, check_places
    from mccompile.studio.report.figure import Figure, check_figure
    from mccompile.studio.report.page import page_data, write_page
    from mccompile.studio.report.reading import read_run
    from mccompile.studio.report.record import FILES

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
    for line in summary(record, data):
        say(line)
    results.put(target, lambda path: write_page(record, path))
    if arguments.figure is not None:
        results.put(arguments.figure, Figure.of(record).write)
    results.finish()
    return 0


def summary(record: Record, data: Mapping[str, object]) -> Iterator[str]:
    """In lines: the ways, the worst frame, what was kept, where the plan was wrong, and all that went another way."""
    first = record.ways[0]
    for way in record.ways:
        flops = "" if way.flops is None else f", {way.flops:.1%} of the FLOPs"
        speed = f", {first.seconds / way.seconds:.2f}x" if way is not first else ""
        yield f"{way.name}: {way.seconds:.2f} s{speed}, {way.tokens:.1%} of the tokens{flops}"
    decibel, kept, surprises = data["psnr"], data["kept"], data["surprises"]
    assert isinstance(decibel, list)
    assert isinstance(kept, dict)
    assert isinstance(surprises, list)
    if decibel:
        yield f"worst frame {data['worst']}: {min(decibel):.1f} dB"
    if kept["bytes"]:
        yield f"kept at most {max(kept['bytes']):,} bytes"
    if record.story.plan:
        settled = sum(step.action != "dynamic" for step in record.story.plan)
        yield f"the plan settles {settled} of {len(record.story.plan)} steps; {len(surprises)} chunks did otherwise"
    own = record.ways[-1].seconds
    yield f"recording took {record.story.watching:.2f} s of the run's {own:.2f} s ({record.story.watching / own:.1%})"
    yield from (f"refused {refusal}" for refusal in record.refusals)
    yield from (*record.story.warnings, *record.story.fallbacks)


_WORDS = {"full": "computed", "partial": "computed in part", "reuse": "reused", "skip": "waiting"}
