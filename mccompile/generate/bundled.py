"""Writes a policy that was compiled into a pipeline's transformer as one file, and reads it."""

from __future__ import annotations

from pathlib import Path

from mccompile import api
from mccompile.backend.inductor import Progress, inductor
from mccompile.backend.record import Recorder
from mccompile.backend.role import Backend
from mccompile.bundles.bundle import Bundle, save_bundle
from mccompile.bundles.bundle_errors import SeveralTransformers
from mccompile.capture import flat_inputs
from mccompile.generate.compare import Contender, compile_roles, within_budget
from mccompile.lowering.types import LoweredModel
from mccompile.pipelines.finding import driver_for
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.choosing import Chosen
from mccompile.runtime.blocks import eager
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.exercise import record_roles
from mccompile.runtime.remembers import runs_at
from mccompile.runtime.stand_in import SLOTS, ExpertSlot


def transformer_folder(folder: Path, slot: ExpertSlot | None = None) -> Path:
    """Where a pipeline folder keeps the transformer of a place."""
    return folder / (SLOTS[0] if slot is None else slot)


def write_bundle(
    path: Path,
    pipe: object,
    captured: api.Prepared,
    found: Chosen,
    text: str,
    reference: str,
    folder: Path,
    progress: Progress | None,
    deny_refusals: bool,
    verify: bool = False,
) -> CompiledModel:
    """Compiles a policy into the pipeline's transformer and writes it to `path`.

    found: the policy as it was loaded, and the values of its parameters. text: as it is written, "" where it is not.
    reference: how the user named the model; folder: of the pipeline.
    Raises what `api.compile` raises, UnbundledRole, SeveralTransformers (MC0818), and OSError where `path` cannot be
    written.
    """
    _refuse_several(pipe)
    way = within_budget(pipe, Contender(found.policy.name, found.policy, found.numbers), captured)
    backend = compile_roles(captured, (way,), progress)
    compiled = api.compile(
        pipe, way.policy, backend=backend, captured=captured, deny_refusals=deny_refusals, verify=verify,
        **found.numbers,  # type: ignore[arg-type]
    )  # fmt: skip
    compiled.undo()
    save_bundle(path, compiled, backend, reference=reference, folder=transformer_folder(folder), policy=text)
    return compiled


def _refuse_several(pipe: object) -> None:
    slots = driver_for(pipe).experts(pipe)
    if len(slots) > 1:
        raise SeveralTransformers(type(pipe).__name__, slots)


def open_bundle(
    bundle: Bundle, pipe: object, folder: Path, parameters: dict[str, float], backend: str = "inductor",
    progress: Progress | None = None,
) -> CompiledModel:
    """The bundle's compiled model over the transformer of a loaded pipeline, not yet in its place.

    A bundle that was read without its packages is compiled here, by the backend "inductor" or "eager".
    Raises WrongModel, AlteredBundle, SeveralTransformers (MC0818), and PolicyError for parameters that the policy does
    not have.
    """
    _refuse_several(pipe)
    transformer = api.own_transformer(pipe)

    def here(lowered: LoweredModel, bound: BoundPolicy) -> Backend:
        if backend == "eager":
            return eager
        captured = lowered.captured
        calls = driver_for(pipe).record(pipe, {})
        if not all(runs_at(transformer, call) for call in calls):
            calls = driver_for(pipe).record(pipe, {}, larger=True)
        given = (flat_inputs(captured, call) for call in calls)
        recorder = Recorder()
        record_roles(recorder, lowered, bound, [dict(zip(captured.inputs, g, strict=True)) for g in given])
        return inductor(recorder, lowered, progress=progress)

    compiled = bundle.attach(transformer, transformer_folder(folder), None if bundle.native else here)
    compiled.set_parameters(**parameters)
    return compiled
