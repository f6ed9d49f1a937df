"""What only a GPU can show: `pytest -m gpu`. Compiled generations there, against the same ones on the CPU.

The simulated GPU (test_device.py) runs the same policies. Here kernels are real: numbers are compared within bounds, and
torch itself raises where a call makes the host wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mccompile
from mccompile.generate.replay import replay
from tests.device.test_device import POLICIES, SIZE, generated
from tests.runtime.conftest import Tiny, embeds, pipeline

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]
PARITY = Path(__file__).parents[1] / "data" / "parity"
ON_THE_GPU = {"float32": 2e-3, "bfloat16": 0.15}  # of the largest value; last bits of float8's numbers are more
