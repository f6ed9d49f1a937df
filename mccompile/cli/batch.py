"""`mccompile generate --prompts FILE`: a video of each prompt, in this process or on the workers of a cluster."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.failures import REFUSED
from mccompile.cli.generate_job import DEFAULT_FPS, settings_of
from mccompile.cli.progress import Display, display
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.generate.batch import Made, Recipe, Unmade
    from mccompile.generate.places import Use
    from mccompile.ir import PolicyIR


def batch(arguments: argparse.Namespace, model: str, policy: PolicyIR, reads: Sequence[Use]) -> int:
    """Makes the videos that are not there yet; 1 where a prompt has none in the end."""
    from mccompile.generate.batch import Unmade, open_folder
    from mccompile.generate.load import EMBEDDED
    from mccompile.generate.outputs import write_video
    from mccompile.generate.places import Results, Use, check_places
    from mccompile.generate.prompts import names_of, prompt_lines
    from mccompile.models.embedded import DEFAULTS

    prompts = prompt_lines(arguments.prompts, "give a text file with one prompt a line")
    recipe = _recipe(arguments, model, policy, prompts[0])
    out = arguments.out
    videos = [out / f"{name}.mp4" for name in names_of(prompts)]
    check_places([Use(f"--out {out}", video) for video in videos], [*reads, Use("--prompts", arguments.prompts)])
    open_folder(out, recipe.about())
    left = [n for n, video in enumerate(videos) if not video.is_file()]
    if len(left) < len(videos):
        say(f"going on with {out}: {len(videos) - len(left)} of {len(videos)} videos are there")
    fps = arguments.fps or (DEFAULTS.fps if model == EMBEDDED else DEFAULT_FPS)
    results, failed = Results(say), 0
    with display() as shown:
        for place, made in _made(arguments, model, recipe, [prompts[n] for n in left], shown) if left else ():
            video, prompt = videos[left[place]], prompts[left[place]]
            if isinstance(made, Unmade):
                failed += 1
                say(f"failed: {prompt}: {made.why}")
                continue
            say(f"{prompt}: {made.seconds:.2f} s, {made.tokens:.1%} of the tokens computed")
            write_video(results, video, video.stem, made.video, fps)
    results.finish()
    say(f"{len(videos) - failed} of {len(videos)} videos are in {out}")
    return REFUSED if failed else 0


def _recipe(arguments: argparse.Namespace, model: str, policy: PolicyIR, first: str) -> Recipe:
    from mccompile.generate.batch import Recipe
    from mccompile.generate.load import EMBEDDED, find_folder
    from mccompile.generate.placement import Placement

    arguments.prompt = first  # settings ask for one; each video has its own
    return Recipe(
        folder=find_folder(model),
        place=Placement.of(arguments.device, arguments.dtype, arguments.cpu_offload),
        settings=settings_of(arguments, model == EMBEDDED),
        seed=arguments.seed,
        policy=policy,
        numbers=dict(arguments.parameters),
        backend=arguments.backend,
        deny_refusals=arguments.deny == "refusals",
        bundle=None if arguments.bundle is None else arguments.bundle.read_bytes(),
        native=not arguments.no_native,
    )


def _made(
    arguments: argparse.Namespace, model: str, recipe: Recipe, prompts: Sequence[str], shown: Display
) -> Iterator[tuple[int, Made | Unmade]]:
    """The videos as they end."""
    from mccompile.generate.batch import make_here, make_spread
    from mccompile.generate.cluster import Workers, ray_cluster

    if arguments.engine == "local":
        yield from make_here(recipe.build(shown.task, shown.compiled), prompts)
        return
    cluster = ray_cluster(recipe.place.device)
    count = min(arguments.workers or cluster.size(), len(prompts))
    workers = Workers(cluster, count, _bundled(model, recipe, shown).build_alone)
    try:
        yield from make_spread(workers, prompts)
    finally:
        workers.close()


def _bundled(model: str, recipe: Recipe, shown: Display) -> Recipe:
    """The recipe with a bundle, so that workers compile nothing; without a compiler there is nothing to share."""
    from mccompile.generate.bundled import write_bundle
    from mccompile.generate.compare import capture_for
    from mccompile.generate.load import load_pipeline
    from mccompile.generate.run import call_arguments
    from mccompile.policy.choosing import Chosen

    if recipe.bundle is not None or recipe.backend == "eager":
        return recipe
    with tempfile.TemporaryDirectory(prefix="mccompile-") as folder:
        path = Path(folder, "batch.mcb")
        pipe = load_pipeline(recipe.folder, recipe.place)
        captured = capture_for(pipe, call_arguments(pipe, recipe.settings))
        found = Chosen(recipe.policy, {}, recipe.numbers)
        write_bundle(path, pipe, captured, found, "", model, recipe.folder, shown.compiled, recipe.deny_refusals)
        return replace(recipe, bundle=path.read_bytes())
