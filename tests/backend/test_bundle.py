"""A bundle saved and loaded is the same model: same graphs, same decisions, same outputs, nothing compiled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from mccompile.backend import inductor as inductor_module
from mccompile.backend.compiled_roles import CompiledRole, CompiledRoles
from mccompile.backend.graph_text import fingerprint
from mccompile.backend.inductor import inductor
from mccompile.backend.package_errors import UnfitCall
from mccompile.backend.record import Recorder
from mccompile.backend.role import Role
from mccompile.bundles import bundle as bundle_module
from mccompile.bundles.bundle import load_bundle, save_bundle
from mccompile.bundles.bundle_errors import AlteredBundle, ForeignBundle, UnbundledRole, WrongModel
from mccompile.bundles.identity import Environment
from mccompile.runtime.blocks import eager
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.engine import Engine
from mccompile.runtime.exercise import exercise
from tests.backend.conftest import Tiny, run, transformer

ROWS = Role("rows")


def recorded(tiny: Tiny) -> Recorder:
    recorder = Recorder()
    exercise(Engine(tiny.lowered, recorder), tiny.bound, tiny.prepared.calls)
    return recorder


def uncompiled(tiny: Tiny) -> CompiledRoles:
    """Roles as after a compile in which nothing was worth compiling."""
    recordings = recorded(tiny).recordings
    return CompiledRoles({k: CompiledRole(r.role, "eager", "in a test", r.tensors) for k, r in recordings.items()})


def reference(tiny: Tiny) -> CompiledModel:
    return CompiledModel(tiny.model, tiny.lowered, tiny.bound, eager)


@pytest.fixture
def saved(tiny: Tiny, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.mcc"
    save_bundle(path, reference(tiny), uncompiled(tiny), policy="the text", reference="tiny")
    return path


def test_a_bundle_runs_over_weights_loaded_again(tiny: Tiny, saved: Path) -> None:
    bundle = load_bundle(saved)
    assert (bundle.policy, bundle.model.reference, bundle.device) == ("the text", "tiny", "cpu")
    again = bundle.attach(transformer())
    one, two = reference(tiny), again
    for mine, other in zip(run(one), run(two), strict=True):  # a bundle's patches are a product (backend/patches.py)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    decided = [[(e.chunk, e.step, e.action, e.computed) for e in model.events] for model in (one, two)]
    assert decided[0] == decided[1]
    assert {"full", "reuse"} <= {e.action for e in one.events}


def test_the_rebuilt_graphs_are_the_captured_ones(tiny: Tiny, saved: Path) -> None:
    again = load_bundle(saved).attach(transformer()).captured
    captured = tiny.lowered.captured
    assert fingerprint(again.module) == fingerprint(captured.module)
    found, wanted = (
        [m.prelude, m.gather, m.postlude, *(p for k in m.kinds for p in (k.full, k.partial, k.allocate))]
        for m in (again, captured)
    )
    for one, two in zip(found, wanted, strict=True):
        assert one is not None
        assert two is not None
        assert (one.takes, one.gives, one.attentions) == (two.takes, two.gives, two.attentions)
        assert fingerprint(one.module) == fingerprint(two.module)
        assert [n.name for n in one.graph.nodes] == [n.name for n in two.graph.nodes]
    assert any(part.attentions for part in found if part is not None)
    assert (again.blocks, again.shared, again.sources, again.grid) == (
        captured.blocks, captured.shared, captured.sources, captured.grid,
    )  # fmt: skip
    assert (again.in_spec, again.out_spec, again.constants) == (
        captured.in_spec, captured.out_spec, captured.constants,
    )  # fmt: skip


def test_weights_are_the_new_model_s(tiny: Tiny, saved: Path) -> None:
    other = transformer()
    other.proj_out.weight.data.zero_()
    other.proj_out.bias.data.zero_()
    compiled = load_bundle(saved).attach(other)
    assert all(not bool(t.any()) for t in run(compiled))
    other.load_state_dict({name: torch.ones_like(value) for name, value in other.state_dict().items()}, assign=True)
    compiled.clear()
    assert all(bool(t.any()) for t in run(compiled))


def test_another_model_is_refused(tiny: Tiny, saved: Path) -> None:
    with pytest.raises(WrongModel, match="weights are float64, not float32"):
        load_bundle(saved).attach(transformer().double())
    with pytest.raises(WrongModel, match="it is a Linear"):
        load_bundle(saved).attach(torch.nn.Linear(2, 2))


def test_another_machine_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bundle_module.environment

    def elsewhere(device: str) -> Environment:
        return replace(real(device), machine="sparc", torch="9.9")

    monkeypatch.setattr(bundle_module, "environment", elsewhere)
    with pytest.raises(ForeignBundle, match=r"torch: made for .*, here 9\.9\n  machine: .* here sparc") as caught:
        load_bundle(saved)
    assert caught.value.code == "MC0814"


def test_a_role_without_a_file_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    roles = uncompiled(tiny)
    key, role = next(iter(roles.roles.items()))
    jit = CompiledRoles({**roles.roles, key: replace(role, form="torch.compile", reason="why")})
    with pytest.raises(UnbundledRole, match="why") as caught:
        save_bundle(tmp_path / "x.mcc", reference(tiny), jit)
    assert caught.value.code == "MC0816"
    assert not (tmp_path / "x.mcc").exists()


def test_graphs_that_lower_otherwise_are_refused(tiny: Tiny, saved: Path) -> None:
    bundle = load_bundle(saved)
    roles = tuple(replace(r, graph="0" * 32) if r.role.part == "decide" else r for r in bundle.roles)
    with pytest.raises(AlteredBundle, match="another graph `decide`"):
        replace(bundle, roles=roles).attach(transformer())


def compiled_block(tiny: Tiny) -> CompiledRoles:
    """Block and postlude compiled, one in a process of its own; the small graphs left as they are to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inductor_module, "WORTH_COMPILING", 60)
        recorder = recorded(tiny)
        recorder.recordings = {k: r for k, r in recorder.recordings.items() if k[0].part != "decide"}
        seen: list[tuple[str, int, int]] = []
        made = inductor(recorder, tiny.lowered, workers=1, progress=lambda r, d, t, s: seen.append((r, d, t)))
        assert sorted(seen, key=lambda s: s[1]) == seen
        assert [s[1:] for s in seen] == [(1, 2), (2, 2)]
        assert {s[0] for s in seen} == {"block0:partial", "postlude"}
        return made


def test_compiled_roles_compute_what_eager_ones_do(tiny: Tiny, tmp_path: Path) -> None:
    """One test for all that needs a compile, since each process of a parallel run would repeat it."""
    compiled = compiled_block(tiny)
    assert {str(r.role): r.form for r in compiled.roles.values()}["block0:partial"] == "package"
    assert compiled.compiled_count == 2
    model = CompiledModel(tiny.model, tiny.lowered, tiny.bound, compiled)
    counters.clear()
    wanted, found = run(reference(tiny)), run(model)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    model.set_parameters(threshold=0.2)
    run(model, frames=6, height=3, width=8)
    assert compiled.compiled_count == 2
    assert not counters["stats"]
    assert [r.site for r in compiled.refusals] == ["graph decide"]
    save_bundle(tmp_path / "compiled.mcc", model, compiled)
    again = load_bundle(tmp_path / "compiled.mcc").attach(transformer())
    assert all(torch.equal(a, b) for a, b in zip(run(again), found, strict=True))
    refuses_two_samples(tiny, compiled)


def refuses_two_samples(tiny: Tiny, compiled: CompiledRoles) -> None:
    module = tiny.lowered.rows.partial[0].module  # type: ignore[union-attr]
    (spec,) = (r for k, r in recorded(tiny).recordings.items() if k[0] == ROWS)
    arguments = [
        torch.zeros(s.shape, dtype=s.dtype) if hasattr(s, "shape") else s  # type: ignore[union-attr]
        for s in spec.calls[0]
    ]
    arguments[0] = arguments[0].expand(2, -1, -1)  # type: ignore[union-attr]
    with pytest.raises(UnfitCall, match=r"block0:partial.*\[1,"):
        compiled(module, ROWS)(*arguments)  # type: ignore[arg-type]


def test_the_manifest_can_be_read_by_people(saved: Path) -> None:
    import zipfile

    with zipfile.ZipFile(saved) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["made_for"]["torch"] == torch.__version__
    assert manifest["ir"].startswith("policy ")
    assert manifest["model"]["model_class"] == "SkyReelsV2Transformer3DModel"
    assert {"captured.json", "constants.safetensors"} <= set(manifest["entries"])
