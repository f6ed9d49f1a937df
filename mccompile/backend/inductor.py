"""The `inductor` backend: recorded roles compiled ahead of time, each once, handed out by role and graph.

before: a graph and a role, run eagerly by a Recorder;  after: an AOTInductor package, checked before each call
refuses when: AOTInductor cannot take the graph (then torch.compile), or no call of it was recorded (then eager)
"""

from __future__ import annotations

import logging
import operator
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from mccompile.backend import cuda_headers
from mccompile.backend.aot import OPTIONS, CannotCompile, compile_program, export_role, headers_pay
from mccompile.backend.compiled_roles import CompiledRole, CompiledRoles
from mccompile.backend.isa import host_isa
from mccompile.backend.jit import compile_in_place
from mccompile.backend.package import Contract, PackageFolder
from mccompile.backend.package_cache import find, keep, key_of
from mccompile.backend.pool import Pool
from mccompile.backend.record import Key, Recorder, RoleRecording, TensorSpec
from mccompile.lowering.locate import latent_inputs, timestep_of
from mccompile.lowering.types import LoweredModel

Progress = Callable[[str, int, int, float], None]  # role just done, roles done, roles in all, seconds so far
LOG = logging.getLogger("mccompile")
WORTH_COMPILING = 20  # operators: fewer take under 0.2 ms a call, and 6 s of CPU time to compile
VIEWS = frozenset(("view", "reshape", "movedim", "unsqueeze", "flatten", "unflatten", "permute", "transpose", "size"))


def inductor(
    recorder: Recorder, lowered: LoweredModel, *, progress: Progress | None = None, workers: int | None = None
) -> CompiledRoles:
    """Compiles every recorded role.

    workers: processes that compile beside this one (default: as many in all as CPUs, never more than graphs); 0
    compiles in this process alone. Prelude values that stay the same through a request are left eager: they run once.
    """
    changing = latent_inputs(lowered.captured) | {timestep_of(lowered.captured)}
    todo = {k: r for k, r in recorder.recordings.items() if r.calls}
    roles: dict[Key, CompiledRole] = {}
    for key, recording in list(todo.items()):
        reason = why_eager(recording, changing)
        if reason:
            roles[key] = CompiledRole(recording.role, "eager", reason, recording.tensors)
            del todo[key]
    folder = PackageFolder()
    made = _Build(folder.path, distinct(todo), progress or _silent)
    if made.todo:
        host_isa()
        if any(_on_gpu(recording) for recording in made.todo.values()):
            _find_headers()
        made.run(min(len(made.todo), os.cpu_count() or 1) - 1 if workers is None else workers)
    roles |= {(role, graph): replace(made.roles[graph], role=role) for role, graph in todo}
    for graph, role in made.roles.items():
        if role.form == "torch.compile":
            LOG.warning("graph %s is no package and runs under torch.compile: %s", made.todo[graph].role, role.reason)
    jit = {g: compile_in_place(made.todo[g]) for g, r in made.roles.items() if r.form == "torch.compile"}
    order = [k for k in recorder.recordings if k in roles]
    return CompiledRoles({k: roles[k] for k in order}, len(made.roles), _jit=jit, _folder=folder)


def _on_gpu(recording: RoleRecording) -> bool:
    return any(isinstance(spec, TensorSpec) and spec.device.type == "cuda" for spec in recording.calls[0])


def _find_headers() -> None:
    """Says which packages of CUDA headers are missing: without them nothing becomes a package."""
    places = cuda_headers.folders()
    lacking = cuda_headers.missing(places)
    if lacking:
        LOG.warning("the CUDA headers of %s are missing: %s", ", ".join(lacking), cuda_headers.REMEDY)
    cuda_headers.show_to_compilers(places)


def distinct(recordings: Mapping[Key, RoleRecording]) -> dict[str, RoleRecording]:
    """One recording per graph, with the calls of all roles that share it; on rows where one of them is."""
    found: dict[str, RoleRecording] = {}
    for (_, graph), recording in recordings.items():
        if graph in found:
            calls = [*found[graph].calls, *recording.calls]
            first = recording if recording.role.part == "rows" else found[graph]
            recording = replace(first, calls=list(dict.fromkeys(calls)))
        found[graph] = recording
    return found


@dataclass(slots=True)
class _Build:
    """One round of compiles."""

    folder: Path
    todo: Mapping[str, RoleRecording]  # by the fingerprint of the graph
    progress: Progress
    roles: dict[str, CompiledRole] = field(default_factory=dict)
    _known_as: dict[str, str] = field(default_factory=dict)  # in the cache of packages
    _started: float = field(default_factory=time.perf_counter)

    def run(self, workers: int) -> None:
        """workers: processes beside this one, as many as `inductor` was given."""
        wanted = [key for key in self._largest_first() if not self._compiled_before(key)]
        workers = min(workers, len(wanted) - 1)
        headers = headers_pay(len(wanted), workers + 1)
        if workers < 1:
            for key in wanted:
                self._one_here(key, headers)
            return
        jobs: list[tuple[str, Contract, ExportedProgram, Future[str | None]]] = []
        with Pool(workers) as pool:
            for key in wanted:
                try:
                    program, contract = export_role(self.todo[key])
                except CannotCompile as verdict:
                    self._done(key, None, str(verdict))
                    continue
                program_path = self._package(key).with_suffix(".program.pt2")
                torch.export.save(program, program_path)
                job = pool.submit(program_path, self._package(key), headers, self._by_rows(key))
                jobs.append((key, contract, program, job))
            for key, contract, program, job in reversed(jobs):
                if job.cancel():  # no process has begun it: this one is free now
                    self._compile(key, program, contract, headers)
            for key, contract, _, job in jobs:
                if not job.cancelled():
                    self._done(key, contract, job.result())

    def _compiled_before(self, key: str) -> bool:
        """Takes the package of a graph that this machine has compiled before."""
        self._known_as[key] = key_of(self.todo[key], OPTIONS)
        contract = find(self._known_as[key], self._package(key))
        if contract is not None:
            self._done(key, contract, None, new=False)
        return contract is not None

    def _one_here(self, key: str, headers: bool) -> None:
        try:
            program, contract = export_role(self.todo[key])
        except CannotCompile as verdict:
            self._done(key, None, str(verdict))
        else:
            self._compile(key, program, contract, headers)

    def _compile(self, key: str, program: ExportedProgram, contract: Contract, headers: bool) -> None:
        """Compiles one graph in this process."""
        try:
            compile_program(program, self._package(key), headers, self._by_rows(key))
        except CannotCompile as verdict:
            self._done(key, None, str(verdict))
        else:
            self._done(key, contract, None)

    def _by_rows(self, key: str) -> bool:
        return self.todo[key].role.part == "rows"

    def _package(self, key: str) -> Path:
        return self.folder / f"{key}.pt2"

    def _largest_first(self) -> Sequence[str]:
        """Long compiles first, so that the processes end together."""
        return sorted(self.todo, key=lambda k: -len(self.todo[k].module.graph.nodes))

    def _done(self, key: str, contract: Contract | None, error: str | None, new: bool = True) -> None:
        recording = self.todo[key]
        if error is None and contract is not None:
            package = self._package(key)
            self.roles[key] = CompiledRole(recording.role, "package", "", recording.tensors, package, contract)
            if new:
                keep(self._known_as[key], package, contract)
        else:
            self.roles[key] = CompiledRole(recording.role, "torch.compile", error or "", recording.tensors)
        self.progress(str(recording.role), len(self.roles), len(self.todo), time.perf_counter() - self._started)


def why_eager(recording: RoleRecording, changing: frozenset[str]) -> str:
    """Why compiling a role would not pay; "" where it does.

    A prelude group (runtime/shared.py) whose inputs stay the same runs once per request, as does what blocks take
    from the prompt alone. Blocks are always compiled: they run once per layer; and so is the postlude: it runs on all
    tokens.
    """
    role = recording.role
    if role.part in ("block", "rows", "postlude"):
        return ""
    if role.part == "prompt" or (role.part == "prelude" and not changing & role.depends):
        return "computed once per request"
    calls = [n for n in recording.module.graph.nodes if n.op in ("call_function", "call_method")]
    operators = sum(not _moves_nothing(n) for n in calls)
    return f"only {operators} operators" if operators < WORTH_COMPILING else ""


def _moves_nothing(node: fx.Node) -> bool:
    """Sizes and arithmetic of sizes, and views."""
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem or (isinstance(node.target, str) and node.target in VIEWS)
    return node.target.is_view or node.target.namespace == "prims" or "sym_" in node.target._opname


def _silent(role: str, done: int, total: int, seconds: float) -> None:
    """Shows no progress."""

