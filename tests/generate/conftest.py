"""The embedded pipeline at its smallest, loaded and captured once: two chunks of four latent frames, 16 tokens each."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mccompile import api
from mccompile.generate.compare import capture_for
from mccompile.generate.load import find_folder, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.run import EMBEDDED_SETTINGS, Settings, call_arguments
from tests.embedded_once import one_capture

SMALL = {"num_inference_steps": 4, "num_frames": 15, "height": 32, "width": 32, "ar_step": 2}


@dataclass(frozen=True)
class Small:
    """A loaded pipeline, its captured transformer, and the arguments of a small call."""

    pipe: object
    captured: api.Prepared
    call: dict[str, object]


@pytest.fixture(scope="session")
def small() -> Small:
    pipe = load_pipeline(find_folder("embedded"), Placement.of("cpu", None, False))
    call = call_arguments(pipe, Settings(**(EMBEDDED_SETTINGS.given() | SMALL)))
    with one_capture():
        return Small(pipe, capture_for(pipe, call), call)
