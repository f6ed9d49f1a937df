"""A batch: one video for each of many prompts, in this process or on the workers of a cluster."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mccompile import api
from mccompile.backend.inductor import Progress
from mccompile.bundles.bundle import Bundle, load_bundle
from mccompile.diagnostics.failure import Failure
from mccompile.generate.bundled import open_bundle
from mccompile.generate.cluster import Lost, Workers
from mccompile.generate.compare import Announce, announce, capture_for, run_with, unannounced
from mccompile.generate.errors import OptionRefused
from mccompile.generate.load import load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.places import put
from mccompile.generate.run import Settings, Video, call_arguments
from mccompile.ir import PolicyIR
from mccompile.pipelines.finding import driver_for
from mccompile.policy.text import show
from mccompile.resources import own_version
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.trace import share_computed

MANIFEST = "batch.json"


@dataclass(frozen=True, slots=True)
class MadeVideo:
    """The video of one prompt, the seconds that it took, and the share of the tokens that was computed, 0..1."""

    video: Video
    seconds: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Unmade:
    """A prompt without a video; why, in a sentence."""

    why: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the videos of a batch are made. settings: of all of them but for the prompt.

    bundle: the bytes of a bundle of `policy`, or None to compile it where it runs. native: whether code of a bundle is
    loaded.
    """

    folder: Path
    place: Placement
    settings: Settings
    policy: PolicyIR
    numbers: Mapping[str, float]
    backend: str
    deny_refusals: bool
    bundle: bytes | None
    native: bool

    def build(self, shown: Announce, progress: Progress | None) -> BatchRig:
        """Loads the pipeline and compiles the policy, or opens the bundle."""
        pipe = load_pipeline(self.folder, self.place)
        call = call_arguments(pipe, self.settings)
        if self.bundle is None:
            model = api.compile(
                pipe,
                self.policy,
                backend=self.backend,  # type: ignore[arg-type]  # one of two words
                captured=capture_for(pipe, call),
                deny_refusals=self.deny_refusals,
                progress=progress,
                **self.numbers,  # type: ignore[arg-type]
            )
            model.undo()
        else:
            driver_for(pipe).announce(pipe, call)  # a bundle asks for the configuration
            model = open_bundle(self._bundle(), pipe, self.folder, dict(self.numbers), self.backend, progress)
        return BatchRig(pipe, model, self.settings, shown)

    def build_alone(self) -> BatchRig:
        """The same on the one device of a worker, telling nobody of its progress."""
        return replace(self, place=self.place.of_worker()).build(unannounced, None)

    def _bundle(self) -> Bundle:
        assert self.bundle is not None
        with tempfile.TemporaryDirectory(prefix="mccompile-") as folder:
            path = Path(folder, "batch.mcb")
            path.write_bytes(self.bundle)
            path.chmod(0o600)
            return load_bundle(path, native=self.native)

    def about(self) -> dict[str, object]:
        """What all videos of the batch share, for its manifest."""
        video = {k: v for k, v in self.settings.given().items() if k != "prompt"}
        return {
            "model": str(self.folder),
            "policy": hashlib.sha256(show(self.policy).encode()).hexdigest()[:16],
            "parameters": dict(self.numbers),
            "video": video,
            "place": asdict(self.place),
            "mccompile": own_version(),
        }


WantedVideo = tuple[str, str | None, int]
"""A video: its name, its prompt (None: that of the settings) and its seed."""


class BatchRig:
    """A pipeline with its compiled policy: video after video."""

    def __init__(self, pipe: object, model: CompiledModel, settings: Settings, shown: Announce) -> None:
        self._pipe, self._model, self._settings, self._shown = pipe, model, settings, shown

    def said(self) -> list[str]:
        """What the policy does to the numbers, and what of it was refused."""
        return [announce(self._model), *(f"refused {r.site}: {r.reason}" for r in self._model.refusals)]

    def make(self, name: str, prompt: str | None, seed: int) -> MadeVideo | Unmade:
        """One video. What the pipeline refuses of it does not stop the others."""
        try:
            settings = self._settings if prompt is None else replace(self._settings, prompt=prompt)
            call = call_arguments(self._pipe, settings)
            done = run_with(self._pipe, self._model, call, seed, self._shown(name))
        except Failure as error:
            return Unmade(str(error).strip().splitlines()[0])
        return MadeVideo(done.video, done.seconds, share_computed(self._model.events))


def make_here(rig: BatchRig, wanted: Sequence[WantedVideo]) -> Iterator[tuple[int, MadeVideo | Unmade]]:
    """Every video, one after the other: its place and what was made."""
    for place, one in enumerate(wanted):
        yield place, rig.make(*one)


def make_spread(workers: Workers[BatchRig], wanted: Sequence[WantedVideo]) -> Iterator[tuple[int, MadeVideo | Unmade]]:
    """Every video on a free worker, as they end. One whose worker dies is made once more by another one."""
    left = list(range(len(wanted)))
    for _ in range(2):
        lost = []
        for n, _, found in workers.share(_make, [wanted[i] for i in left]):
            if isinstance(found, Lost):
                lost.append(left[n])
            else:
                assert isinstance(found, MadeVideo | Unmade)
                yield left[n], found
        left = lost
    for place in left:
        yield place, Unmade("its worker died, twice")


def _make(rig: BatchRig, name: str, prompt: str | None, seed: int) -> MadeVideo | Unmade:
    return rig.make(name, prompt, seed)


def open_folder(folder: Path, about: Mapping[str, object]) -> None:
    """Makes a folder that of a batch, or goes on in it. Raises OptionRefused where another batch lies there."""
    path = folder / MANIFEST
    now = json.loads(json.dumps(dict(about)))
    if path.is_file():
        try:
            then = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError):
            then = None
        if then != now:
            differs = [k for k in now if not isinstance(then, dict) or then.get(k) != now[k]]
            why = f"it holds the videos of a batch with another {differs[0] if differs else 'setting'}"
            raise OptionRefused(f"--out {folder}", why, "give another folder, or the same settings to go on")
        return
    put(path, lambda draft: draft.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8"))
