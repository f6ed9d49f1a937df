"""Square roots of sizes are operations of the exported graph, and those of numbers are what they were."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mccompile.capture.export import export_model
from mccompile.capture.roots import symbolic_roots


class _Rooted(nn.Module):
    def __init__(self, root: object) -> None:
        super().__init__()
        self.root = root

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = x.norm(dim=-1, keepdim=True)
        return torch.add(0.5, norm, alpha=self.root(x.size(1) * norm.numel() / x.numel()))  # type: ignore[operator]


@pytest.mark.parametrize("root", ["math", "numpy"])
def test_a_root_of_sizes_is_computed_at_each_size(root: str) -> None:
    model = _Rooted(lambda value: (math if root == "math" else np).sqrt(value)).eval()
    exported = export_model(model, {"x": torch.ones(1, 3, 2)}, {"x": torch.ones(1, 5, 2)})
    call = {"x": torch.arange(14.0).reshape(1, 7, 2)}
    torch.testing.assert_close(exported.module(**call), model(**call))


def test_other_roots_are_as_they_were() -> None:
    before = math.sqrt, np.sqrt
    with symbolic_roots():
        assert math.sqrt(4) == 2
        assert np.sqrt(np.array([4.0, 9.0])).tolist() == [2, 3]
        assert np.sqrt(np.array([4.0]), dtype=np.float32).dtype == np.float32
    assert (math.sqrt, np.sqrt) == before
