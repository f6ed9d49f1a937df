"""Several videos of one `mccompile generate`, in this process or on workers of a cluster; goes on where it stopped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.failures import REFUSED
from mccompile.cli.generate_job import GenerateJob, Take
from mccompile.cli.progress import Display, display
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.generate.batch import MadeVideo, Recipe, Unmade
    from mccompile.ir import PolicyIR


def batch(job: GenerateJob, policy: PolicyIR) -> int:
    """Makes the videos that are not there yet, each written as it ends; 1 where one is not made in the end."""
    from mccompile.generate.batch import Unmade, open_folder
    from mccompile.generate.outputs import single_files, write_video

    out, recipe = job.arguments.out, _recipe(job, policy)
    open_folder(out, {**recipe.about(), "videos": {t.name: [t.prompt, t.seed] for t in job.takes}})
    left = [take for take in job.takes if not single_files(out, take.name)[0].is_file()]
    if len(left) < len(job.takes):
        say(f"going on with {out}: {len(job.takes) - len(left)} of {len(job.takes)} videos are there")
    failed = 0
    with display() as shown:
        for place, made in _made(job, recipe, left, shown) if left else ():
            take = left[place]
            if isinstance(made, Unmade):
                failed += 1
                say(f"failed: {take.name}: {made.why}")
                continue
            say(f"{take.name}: {made.seconds:.2f} s, {made.tokens:.1%} of the tokens computed")
            write_video(job.results, out, take.name, made.video, job.fps)
    job.results.finish()
    say(f"{len(job.takes) - failed} of {len(job.takes)} videos are in {out}")
    return REFUSED if failed else 0


def _recipe(job: GenerateJob, policy: PolicyIR) -> Recipe:
    from mccompile.generate.batch import Recipe

    given = job.arguments
    return Recipe(
        folder=job.folder,
        place=job.place,
        settings=job.settings,
        policy=policy,
        numbers=dict(given.parameters),
        backend=given.backend,
        deny_refusals=given.deny == "refusals",
        bundle=None if given.bundle is None else given.bundle.read_bytes(),
        native=not given.no_native,
    )


def _made(
    job: GenerateJob, recipe: Recipe, takes: Sequence[Take], shown: Display
) -> Iterator[tuple[int, MadeVideo | Unmade]]:
    """The videos as they end."""
    from mccompile.generate.batch import make_here, make_spread
    from mccompile.generate.cluster import Workers, ray_cluster

    wanted = [(take.name, take.prompt, take.seed) for take in takes]
    if job.arguments.engine == "local":
        rig = recipe.build(shown.task, shown.compiled)
        for line in rig.said():
            say(line)
        yield from make_here(rig, wanted)
        return
    cluster = ray_cluster(recipe.place.device)
    count = min(job.arguments.workers or cluster.size(), len(takes))
    workers = Workers(cluster, count, _bundled(job.model, recipe, shown).build_alone)
    try:
        yield from make_spread(workers, wanted)
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
