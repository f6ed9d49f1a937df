"""Bundles: a compiled model as one file, so that a new process runs it without capturing or compiling again.

A bundle holds the captured graphs as text, the compiled packages, the policy, and what all this was made for. The
weights stay in the model's folder. Loading lowers the model again, which takes milliseconds. A graph that differs from
the one at the time of writing finds no package and is refused.

Packages are code, whatever wrote them: they are loaded only from a file that the user alone may change. Graphs are data
(graph_reading.py). A bundle of somebody else can be read without its packages (`native=False`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import fx, nn

from mccompile.backend.compiled_roles import CompiledForm, CompiledRole, CompiledRoles
from mccompile.backend.folders import loadable
from mccompile.backend.graph_text import GraphJson, UnwritableGraph, fingerprint
from mccompile.backend.package import Contract, PackageFolder, check_contract
from mccompile.backend.record import BATCHED, Key
from mccompile.backend.records import read_record, write_record
from mccompile.backend.role import Backend, GraphCall, Role
from mccompile.bundles.archive import MANIFEST, read_archive, read_json, write_archive
from mccompile.bundles.bundle_errors import AlteredBundle, ForeignBundle, UnbundledRole, WrongModel
from mccompile.bundles.captured_text import read_captured, write_captured
from mccompile.bundles.identity import Environment, ModelIdentity, environment, identify
from mccompile.diagnostics.failure import InternalError
from mccompile.lowering.lower import lower
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.text import read, show
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.engine import Engine

CAPTURED, CONSTANTS = "captured.json", "constants.safetensors"
GRAPH = re.compile(r"[0-9a-f]{32}(\+batch)?")  # a fingerprint
MALFORMED = (
    ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError, SyntaxError,
    InternalError,
)  # fmt: skip
"""What graphs that no capture makes run into, when they are rebuilt and lowered."""
Compiler = Callable[[LoweredModel, BoundPolicy], Backend]


@dataclass(frozen=True, slots=True)
class _StoredRole:
    """A role in the manifest. package: the entry that holds it, "" for a role that runs eagerly."""

    role: Role
    graph: str
    form: CompiledForm
    reason: str
    tensors: tuple[bool, ...]
    package: str
    contract: Contract | None

    def check(self, entries: Mapping[str, bytes]) -> None:
        """Raises ValueError where this is nothing that `save_bundle` writes."""
        if GRAPH.fullmatch(self.graph) is None or self.form == "torch.compile":
            raise ValueError(f"`{self.graph:.100}` as {self.form}")
        package = f"{self.graph}.pt2" if self.form == "package" else ""
        if self.package != package or (package and package not in entries) or bool(package) != bool(self.contract):
            raise ValueError(f"`{self.package:.100}` of the graph `{self.role}` in form {self.form}")
        if self.contract is not None:
            check_contract(self.contract)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read, and that is complete and fits this machine.

    policy: the source text as the user wrote it, "" where it was compiled from an IR. device: "cpu" or "cuda".
    uncompiled: roles that were never recorded, and run eagerly. native: whether its packages may be loaded.
    """

    path: Path
    model: ModelIdentity
    policy: str
    ir: str
    parameters: tuple[tuple[str, float], ...]
    fold: bool
    prefixes: frozenset[str]
    device: str
    made_for: Environment
    roles: tuple[_StoredRole, ...]
    uncompiled: tuple[Role, ...]
    entries: dict[str, bytes]
    native: bool = True

    def attach(
        self, transformer: nn.Module, folder: Path | None = None, compiler: Compiler | None = None
    ) -> CompiledModel:
        """The compiled model over a freshly loaded transformer; folder: where that was loaded from.

        compiler: compiles the graphs here, in place of the bundle's packages; without it nothing is captured,
        exported or compiled. Raises WrongModel (MC0815), AlteredBundle (MC0812).
        """
        assert self.native or compiler is not None
        here = identify(transformer, self.model.reference, folder)
        differences = self.model.differences(here)
        device = next(transformer.parameters()).device.type
        if device != self.device:
            differences.append(f"it is on {device}, not on {self.device}")
        if differences:
            raise WrongModel(self.path, here.folder or f"this {here.model_class}", differences)
        text = read_json(self.path, CAPTURED, self.entries[CAPTURED])
        policy = read(self.ir)
        bound = bind(policy, dict(self.parameters))
        try:
            constants = {n: t.to(device) for n, t in load(self.entries[CONSTANTS]).items()}
            lowered = lower(read_captured(text, transformer, constants), policy, self.prefixes, self.fold)
            backend = self._backend() if compiler is None else compiler(lowered, bound)
            compiled = CompiledModel(transformer, lowered, bound, backend, self.fold)
        except (*MALFORMED, SafetensorError) as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0]:.200}" if str(error) else type(error).__name__
            raise AlteredBundle(self.path, CAPTURED, f"holds no captured model ({why})") from error
        unknown = backend.unknown if compiler is None and isinstance(backend, CompiledRoles) else []
        strange = [role for role in unknown if role not in self.uncompiled]
        if strange:
            raise AlteredBundle(self.path, CAPTURED, f"lowers to another graph `{strange[0]}` than the compiled one")
        return compiled

    def _backend(self) -> CompiledRoles:
        folder = PackageFolder()
        roles = {}
        for stored in self.roles:
            package = None
            if stored.package:
                package = folder.path / stored.package
                package.write_bytes(self.entries[stored.package])
            roles[stored.role, stored.graph] = CompiledRole(
                stored.role, stored.form, stored.reason, stored.tensors, package, stored.contract
            )
        return CompiledRoles(roles, _folder=folder)


def save_bundle(
    path: Path, compiled: CompiledModel, backend: CompiledRoles, *, reference: str = "", folder: Path | None = None,
    policy: str = "",
) -> None:
    """Writes `compiled`, whose graphs `backend` compiled, as one file.

    reference: how the user named the model (path or name of a pipeline). folder: the folder of the transformer with its
    config.json and weights; None for a model made in memory. policy: the policy's source text.
    Raises UnbundledRole (MC0816) if a graph is not a package.
    """  # fmt: skip
    lowered, bound = compiled.runner.lowered, compiled.runner.bound
    entries: dict[str, bytes] = {}
    roles: list[_StoredRole] = []
    used = _roles_of(lowered)
    for name, graph in [(name, graph + samples) for name, graph in used for samples in ("", BATCHED)]:
        role = backend.roles.get((name, graph))
        if role is None:
            continue
        if role.form == "torch.compile":
            raise UnbundledRole(name, f"AOTInductor refused it ({role.reason}), and torch.compile keeps no file")
        entry = f"{graph}.pt2" if role.package is not None else ""
        if role.package is not None:
            entries[entry] = role.package.read_bytes()
        roles.append(_StoredRole(name, graph, role.form, role.reason, role.tensors, entry, role.contract))
    try:
        data, constants = write_captured(lowered.whole, compiled.model)
    except UnwritableGraph as error:
        raise UnbundledRole("captured model", f"{error} has no text form") from error
    entries[CAPTURED] = json.dumps(data).encode()
    entries[CONSTANTS] = save({n: t.contiguous().cpu() for n, t in constants.items()})
    device = next(compiled.model.parameters()).device.type
    made = Bundle(
        path=path, model=identify(compiled.model, reference, folder), policy=policy, ir=show(bound.ir),
        parameters=tuple((n, float(v)) for n, v in bound.values.items()), fold=compiled.runner.fold, device=device,
        prefixes=lowered.rows.prefixes if lowered.rows is not None else frozenset(),
        made_for=environment(device), roles=tuple(roles), entries=entries,
        uncompiled=tuple(name for name, graph in used if (name, graph) not in backend.roles),
    )  # fmt: skip
    write_archive(path, _manifest(made), entries)


def _roles_of(lowered: LoweredModel) -> list[Key]:
    """What a model asks its backend for."""
    used: list[Key] = []

    def note(module: fx.GraphModule, role: Role) -> GraphCall:
        used.append((role, fingerprint(module)))
        return module.forward

    Engine(lowered, note)
    return used


def load_bundle(path: Path, native: bool = True) -> Bundle:
    """Reads a bundle and checks every byte of it, and that it was compiled for this machine and these versions.

    native: whether its packages, which are code, may be loaded; then the file must be the user's. Without them the
    graphs are compiled here, and only the versions must be the same.
    Raises UnreadableBundle, AlteredBundle, NewerBundle, ForeignBundle (MC0811 to MC0814), OlderBundle (MC0817),
    ForeignFile (MC0803).
    """
    manifest, entries = read_archive(path)
    bundle = _read_manifest(path, manifest, entries, native)
    if bundle.device == "cuda" and not torch.cuda.is_available():
        raise ForeignBundle(path, [("device", "cuda", "no CUDA device")])
    here = environment(bundle.device)
    differences = (bundle.made_for if native else bundle.made_for.as_versions_of(here)).differences(here)
    if differences:
        raise ForeignBundle(path, differences)
    if native and any(role.package for role in bundle.roles):
        loadable(path.resolve(), "copy the bundle, if you trust who made it, or run it with --no-native")
    return bundle


def _read_manifest(path: Path, manifest: Mapping[str, GraphJson], entries: dict[str, bytes], native: bool) -> Bundle:
    """Raises AlteredBundle where it is not what `save_bundle` writes."""
    try:
        made_for = read_record(Environment, manifest["made_for"])
        device = read_record(str, manifest["device"])
        roles = read_record(tuple[_StoredRole, ...], manifest["roles"])
        bundle = Bundle(
            path=path, entries=entries, made_for=made_for, device=device, roles=roles,
            uncompiled=read_record(tuple[Role, ...], manifest["uncompiled"]),
            model=read_record(ModelIdentity, manifest["model"]),
            policy=read_record(str, manifest["policy"]),
            ir=read_record(str, manifest["ir"]),
            parameters=read_record(tuple[tuple[str, float], ...], manifest["parameters"]),
            fold=read_record(bool, manifest["fold"]),
            prefixes=read_record(frozenset[str], manifest["prefixes"]), native=native,
        )  # fmt: skip
        for role in roles:
            role.check(entries)
        if device not in ("cpu", "cuda"):
            raise ValueError(f"the device {device!r:.40}")
        if manifest["policy_sha256"] != _text_digest(bundle.policy):
            raise ValueError("a policy that is not the one that was written")
        if not {CAPTURED, CONSTANTS} <= set(entries):
            raise ValueError(f"no {CAPTURED} or no {CONSTANTS}")
    except (KeyError, ValueError) as error:
        raise AlteredBundle(path, MANIFEST, f"does not hold what its format has: {error}") from error
    return bundle


def _manifest(bundle: Bundle) -> dict[str, GraphJson]:
    data = {
        f.name: write_record(getattr(bundle, f.name))
        for f in dataclasses.fields(bundle)
        if f.name not in ("path", "entries", "native")
    }
    return {**data, "policy_sha256": _text_digest(bundle.policy)}


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
