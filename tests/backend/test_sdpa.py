"""cuDNN's attention is switched off while graphs on selected rows are compiled, and on again behind them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor import config

from mccompile.backend import aot, inductor, jit
from mccompile.backend.pool import Pool
from mccompile.backend.role import Role
from mccompile.backend.sdpa import cudnn_attention
from tests.backend import toy

ROLES = {Role("block"): True, Role("rows"): False, Role("decide"): True}


@pytest.mark.parametrize("role", ROLES, ids=str)
def test_a_role_is_compiled_with_the_kernels_that_it_may_use(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By AOTInductor, and by torch.compile where that refuses."""
    seen: list[bool] = []

    def compiler(*_: object, **__: object) -> list[str]:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return []

    monkeypatch.setattr(torch._inductor, "aot_compile", compiler)
    monkeypatch.setattr(aot, "package_aoti", lambda path, files: Path(path).write_bytes(b""))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiler)
    recording = replace(toy.recording(), role=role)
    with config.patch({"force_disable_caches": True}):
        inductor._Build(tmp_path, {"toy": recording}, lambda *_: None).run(0)
    jit.compile_in_place(recording)
    assert seen == [ROLES[role]] * 2
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_process_that_compiles_is_told() -> None:
    told = "json.dumps({'error': str(json.loads(line)['by_rows'])})"
    program = f"import sys, json\nfor line in sys.stdin: print({told}, flush=True)"
    with Pool(1, (sys.executable, "-c", program)) as pool:
        asked = [pool.submit(Path("a"), Path("b"), False, by_rows) for by_rows in (True, False)]
        assert [a.result() for a in asked] == ["True", "False"]


def test_a_graph_that_is_also_on_rows_is_compiled_for_rows() -> None:
    one = toy.recording()
    for order in (("block", "rows"), ("rows", "block")):
        roles = [replace(one, role=Role(part)) for part in order]  # type: ignore[arg-type]
        found = inductor.distinct({(r.role, "graph"): r for r in roles})
        assert found["graph"].role == Role("rows")


def test_what_was_forbidden_before_stays_so() -> None:
    with cudnn_attention(allowed=False):
        with cudnn_attention(allowed=True):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
