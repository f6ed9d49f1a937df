"""Video pipelines around a UNet: they have no transformer, and compiling them says so."""

from __future__ import annotations

import diffusers as D

from tests.pipes.parts import Case

_KINDS = (
    D.AnimateDiffPipeline, D.AnimateDiffControlNetPipeline, D.AnimateDiffPAGPipeline, D.AnimateDiffSDXLPipeline,
    D.AnimateDiffSparseControlNetPipeline, D.AnimateDiffVideoToVideoPipeline,
    D.AnimateDiffVideoToVideoControlNetPipeline, D.I2VGenXLPipeline, D.PIAPipeline, D.StableVideoDiffusionPipeline,
    D.TextToVideoSDPipeline, D.TextToVideoZeroPipeline, D.TextToVideoZeroSDXLPipeline, D.VideoToVideoSDPipeline,
)  # fmt: skip


def _bare(kind: type) -> object:
    """The pipeline without its parts: what is refused is refused before any of them is asked for."""
    return object.__new__(kind)


CASES = tuple(Case(kind.__name__, lambda kind=kind: _bare(kind), lambda n: {}) for kind in _KINDS)  # type: ignore[misc]
