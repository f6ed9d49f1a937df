"""A folder of configurations without weights: it tells of a model what the folder with its weights tells."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mccompile import api
from mccompile.capture.errors import ExportError
from mccompile.capture.shallow import capture_hollow, hollow, is_hollow, shallow
from mccompile.cli import main
from mccompile.generate.doctor import findings
from mccompile.generate.errors import UnknownModel
from mccompile.generate.load import load_pipeline
from mccompile.generate.placement import Placement
from mccompile.language.load import load_policy
from mccompile.lowering.lower import lower
from mccompile.models import published
from mccompile.models.published import MODELS, PublishedModel
from mccompile.pipelines.finding import driver_for
from mccompile.policy.bind import bind
from mccompile.runtime.budget import Predictor
from tests.magi.tiny import SETTINGS, TINY
from tests.zoo import ToyTransformer

SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "text_dim": 16, "freq_dim": 32, "num_layers": 5,
    "inject_sample_info": True,
}  # fmt: skip
TEXT = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 512}
SIZES = ((3, 6, 10), (4, 10, 14), (9, 16, 24))
PLACE = Placement("cpu", "float32", False)


def _written(small: PublishedModel, places: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of the model without weights, and one with random ones."""
    bare, full = places.mktemp("bare"), places.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "MODELS", {"small": small})
        published.write("small", bare)
        published.write("small", full, random=True)
    return bare, full


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small SkyReels-V2 without weights, and with random ones."""
    real = MODELS["skyreels-v2-df-1.3b"]
    (kind, config), (vae, _) = real.text[0], real.vae
    small = replace(
        real, transformer=(real.transformer[0], SMALL), text=((kind, {**config, **TEXT}),), vae=(vae, {"base_dim": 8})
    )
    return _written(small, tmp_path_factory)


def test_a_folder_without_weights_makes_the_same_calls(folders: tuple[Path, Path]) -> None:
    pipes = [load_pipeline(folder, PLACE, hollow=True) for folder in folders]
    assert [is_hollow(pipe.transformer) for pipe in pipes] == [True, False]
    assert sum(w.untyped_storage().nbytes() for w in pipes[0].transformer.parameters()) < 2000
    calls = [driver_for(pipe).record(pipe, {})[0] for pipe in pipes]
    assert _sizes(calls[0]) == _sizes(calls[1])


@pytest.fixture(scope="module")
def magi(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small MAGI-1 of five layers without weights, and with random ones."""
    real = MODELS["magi-1-4.5b"]
    ((kind, config),) = real.text
    small = replace(
        real, transformer=(real.transformer[0], asdict(replace(TINY, num_layers=5))),
        vae=(real.vae[0], {"embed_dim": 256, "depth": 1, "num_heads": 4, "mlp_ratio": 1.0, "video_size": 64}),
        scheduler=(real.scheduler[0], asdict(SETTINGS)), text=((kind, {**config, **TEXT}),),
        more={"special_tokens": ("MagiSpecialTokens", {"caption_channels": 16, "num_other_tokens": 20})},
    )  # fmt: skip
    return _written(small, tmp_path_factory)


def test_chunks_in_windows_are_captured_without_weights(magi: tuple[Path, Path]) -> None:
    """MAGI-1 takes keys of earlier chunks for every layer: as many inputs as the model has layers."""
    pipes = [load_pipeline(folder, PLACE, hollow=True) for folder in magi]
    assert [is_hollow(pipe.transformer) for pipe in pipes] == [True, False]
    made = [api.prepare(pipe) for pipe in pipes]
    assert findings(made[0].model) == findings(made[1].model)
    assert made[0].model.shared == made[1].model.shared
    assert made[0].model.blocks == made[1].model.blocks


def _sizes(call: dict[str, object]) -> dict[str, object]:
    return {k: (v.shape, v.dtype) if isinstance(v, torch.Tensor) else v for k, v in call.items()}


def test_without_weights_capture_finds_what_it_finds_with_them() -> None:
    """The parts, what is proved and refused, and the bytes that a policy keeps at another size."""
    model = ToyTransformer(layers=5).eval().requires_grad_(False)
    bare = copy.deepcopy(model)
    for module in bare.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = hollow(weight.shape, weight.dtype)
    probe, second, large = ({"latent": torch.randn(1, 4, *s), "time": torch.rand(1)} for s in SIZES)
    made = [api.prepare(m, probe=probe, second=second) for m in (bare, model)]
    assert findings(made[0].model) == findings(made[1].model)
    assert [s.path for s in made[0].model.blocks] == [f"layers.{i}" for i in range(5)]
    codes = [[(k.full.module.code, k.partial.module.code) for k in m.model.kinds] for m in made]  # type: ignore[union-attr]
    assert codes[0] == codes[1]
    policy = bind(load_policy("top_motion"), {})
    kept = []
    for prepared in made:
        predictor = Predictor(lower(prepared.model, policy.ir, prepared.prefixes), policy)
        store = predictor.store(large, predictor.moment(prepared.calls[0], large))
        kept.append(predictor.count(store, policy.ir.cache))
    assert kept[0] == kept[1]
    assert kept[0].key_values > 0


def test_without_weights_nothing_runs(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UnknownModel):
        load_pipeline(folders[0], PLACE)


class Growing(torch.nn.Module):
    """Blocks of which the last but one is another class than all that the twin has."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Linear(4, 8)
        blocks = [Adding(8, 1.0 + (i == 3)) for i in range(5)]
        self.blocks = torch.nn.ModuleList(blocks)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = self.patch(hidden_states)
        for block in self.blocks:
            x = block(x)
        return x


class Adding(torch.nn.Module):
    def __init__(self, dim: int, factor: float) -> None:
        super().__init__()
        self.out, self.factor = torch.nn.Linear(dim, dim), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out(x)
        return x + (y * self.factor if self.factor > 1 else y)


def test_a_block_that_the_twin_lacks_is_refused() -> None:
    model = Growing().eval().requires_grad_(False)
    assert len(shallow(model).get_submodule("blocks")._modules) == 3
    calls = [{"hidden_states": torch.randn(1, count, 4)} for count in (6, 10)]
    with pytest.raises(ExportError, match="a kind of its blocks"):
        capture_hollow(model, *calls)


@pytest.mark.slow
def test_a_plan_without_weights_leaves_values_to_the_run(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Zeros in place of weights would say that the modulation never moves."""
    assert main(["explain", "teacache", "--model", str(folders[0]), "--stage", "plan", "--steps", "6"]) == 0
    assert "dynamic" in capsys.readouterr().out
