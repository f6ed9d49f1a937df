"""Packages that this machine has compiled before. They are kept in a folder that only the user may change (folders.py).

A package depends on its graph, its recorded calls, torch, Inductor's settings and the CPU. All of them make its key.
`torch._inductor.config.force_disable_caches` switches the cache off, and TORCHINDUCTOR_CACHE_DIR moves it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import torch
from torch._inductor import config

from mccompile.backend.folders import cache_folder
from mccompile.backend.graph_text import fingerprint
from mccompile.backend.isa import cpu_features
from mccompile.backend.native.kernel import kernel
from mccompile.backend.package import Contract
from mccompile.backend.record import RoleRecording, TensorSpec, axis_order
from mccompile.backend.records import read_record, write_record
from mccompile.backend.rows.choice import WINDOW_SOURCE, needs_triton, source_hash
from mccompile.capture.part import attribute

KEPT = 256  # packages, of about 2 MB each


def key_of(recording: RoleRecording, options: object) -> str:
    """64 hex digits; options: what the compiler is told."""
    names = [str(n.target) for n in recording.module.graph.nodes if n.op == "get_attr"]
    values = [attribute(recording.module, n) for n in dict.fromkeys(names)]
    owned = [(v.device, axis_order(v)) if isinstance(v, torch.Tensor) else repr(v) for v in values]
    facts = (
        fingerprint(recording.module), recording.role, recording.calls, recording.tensors, owned, options,
        sorted(config.save_config_portable().items()),
        torch.__version__, torch.version.cuda, torch.get_num_threads(), cpu_features(), kernel() is not None,
        *_gpus(recording),
    )  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _gpus(recording: RoleRecording) -> list[object]:
    """The GPUs that a recording runs on, by name, and what its attention is compiled of there."""
    devices = {s.device for s in recording.calls[0] if isinstance(s, TensorSpec) and s.device.type == "cuda"}
    names = [torch.cuda.get_device_name(d) for d in sorted(devices, key=str)]
    if not names:
        return []
    windows = any(n.target is torch.ops.mccompile.window_attention.default for n in recording.module.graph.nodes)
    return [*names, source_hash(), *([source_hash(WINDOW_SOURCE)] if windows else []), needs_triton()]


def find(key: str, package: Path) -> Contract | None:
    """The contract of a package compiled before, which is copied to `package`; None where there is none."""
    kept = _folder() / key
    if config.force_disable_caches or not kept.is_dir():
        return None
    try:
        contract = read_record(Contract, json.loads((kept / "contract.json").read_text()))
        shutil.copyfile(kept / "model.pt2", package)
    except (OSError, ValueError):  # another process is clearing it away
        return None
    return contract


def keep(key: str, package: Path, contract: Contract) -> None:
    """Keeps a package for other processes; the oldest give way."""
    folder = _folder()
    if config.force_disable_caches or (folder / key).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder))
    (made / "contract.json").write_text(json.dumps(write_record(contract)))
    shutil.copyfile(package, made / "model.pt2")
    try:
        made.rename(folder / key)  # whole or not at all: other processes may be at it
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
    for old in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _folder() -> Path:
    return cache_folder() / "packages"
