"""Video pipelines without a transformer, whose refusal is shown, and those that are not run, each with its reason."""

from __future__ import annotations

import diffusers as D

from tests.pipes.parts import Case

_KINDS = (
    D.AnimateDiffPipeline, D.AnimateDiffControlNetPipeline, D.AnimateDiffPAGPipeline, D.AnimateDiffSDXLPipeline,
    D.AnimateDiffSparseControlNetPipeline, D.AnimateDiffVideoToVideoPipeline,
    D.AnimateDiffVideoToVideoControlNetPipeline, D.I2VGenXLPipeline, D.LTXLatentUpsamplePipeline,
    D.LTX2LatentUpsamplePipeline, D.LTX2VideoDiffusionDecodePipeline, D.PIAPipeline, D.StableVideoDiffusionPipeline,
    D.TextToVideoSDPipeline, D.TextToVideoZeroPipeline, D.TextToVideoZeroSDXLPipeline, D.VideoToVideoSDPipeline,
)  # fmt: skip
_AS_LTX2 = "its transformer is that of LTX2Pipeline"
ABSENT = {
    "Cosmos3OmniPipeline": "it takes prompts as words alone, and its tokenizer and chat template are not at hand",
    "Kandinsky6SRPipeline": "it enlarges a video, by a transformer of its own",
    "LTX2DFRTemporalRefinePipeline": _AS_LTX2,
    "SanaWMPipeline": "it takes prompts as words alone, and its text encoder is not at hand",
}


def _bare(kind: type) -> object:
    """The pipeline without its parts: what is refused is refused before any of them is asked for."""
    return object.__new__(kind)


CASES = tuple(Case(kind.__name__, lambda kind=kind: _bare(kind), lambda n: {}) for kind in _KINDS)  # type: ignore[misc]
