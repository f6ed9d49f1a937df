"""`mccompile explain POLICY --stage memory --model FOLDER`: MAGI-1's memory from its configuration alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mccompile.generate.errors import OptionRefused
from mccompile.generate.memory import predict_memory, show_memory
from mccompile.models.embedded import EMBEDDED_FOLDER
from mccompile.models.magi.config import MagiModelConfig
from mccompile.models.magi.scheduler import MagiScheduler


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The configuration of the 4.5B model, no weights."""
    (tmp_path / "transformer").mkdir()
    defaults = {f.name: f.default for f in dataclasses.fields(MagiModelConfig) if f.default is not dataclasses.MISSING}
    official = {"num_layers": 34, "hidden_size": 3072, "ffn_hidden_size": 12288, "num_attention_heads": 24}
    official |= {"num_query_groups": 8, "kv_channels": 128}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(defaults | official))
    MagiScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MagiPipeline"}))
    return tmp_path


def test_the_4_5b_model_fits_in_80_gb_at_720_by_720(folder: Path) -> None:
    estimate = predict_memory(folder, 720, 720, 240)
    assert 8.9e9 < estimate.weights < 9.1e9  # 4.46 B parameters, almost all in two bytes
    assert estimate.total < 80e9
    assert show_memory(estimate).splitlines()[-1].split() == ["total", f"{estimate.total / 1e9:.2f}", "GB"]
    assert predict_memory(folder, 1440, 1440, 240).total > estimate.total


def test_a_pipeline_without_a_formula_is_refused() -> None:
    with pytest.raises(OptionRefused, match="no memory formula"):
        predict_memory(EMBEDDED_FOLDER, 64, 64, 31)
