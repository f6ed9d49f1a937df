"""Pipelines with a transformer that have no row in the table of pipelines, each with the reason.

The table has every pipeline for videos (unets.py says which of those are not run). These here make something else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import diffusers

_SLOTS = ("transformer", "transformer_2")

SAME_MODEL = {  # by a pipeline with a row: those for images that call a transformer of the same class
    "ChromaPipeline": ("ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    "CogView4Pipeline": ("CogView4ControlPipeline",),
    "Flux2Pipeline": ("Flux2KleinInpaintPipeline", "Flux2KleinKVPipeline", "Flux2KleinPipeline"),
    "FluxPipeline": (
        "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline", "FluxControlNetImg2ImgPipeline",
        "FluxControlNetInpaintPipeline", "FluxControlNetPipeline", "FluxControlPipeline", "FluxFillPipeline",
        "FluxInpaintPipeline", "FluxKontextInpaintPipeline", "VisualClozeGenerationPipeline", "VisualClozePipeline",
    ),
    "Kandinsky5T2VPipeline": ("Kandinsky5I2IPipeline", "Kandinsky5T2IPipeline"),
    "PixArtSigmaPipeline": ("PixArtSigmaPAGPipeline",),
    "QwenImagePipeline": (
        "QwenImageControlNetInpaintPipeline", "QwenImageControlNetPipeline", "QwenImageEditInpaintPipeline",
        "QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline",
        "QwenImageLayeredPipeline",
    ),
    "SanaPipeline": (
        "SanaControlNetPipeline", "SanaPAGPipeline", "SanaSprintImg2ImgPipeline", "SanaSprintPipeline",
    ),
    "StableDiffusion3Pipeline": (
        "StableDiffusion3ControlNetInpaintingPipeline", "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3InpaintPipeline", "StableDiffusion3PAGImg2ImgPipeline", "StableDiffusion3PAGPipeline",
    ),
    "ZImagePipeline": (
        "ZImageControlNetInpaintPipeline", "ZImageControlNetPipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline",
        "ZImageOmniPipeline",
    ),
}  # fmt: skip
OTHERS = {  # by the reason
    "it makes sound": (
        "AceStepPipeline", "LongCatAudioDiTPipeline", "StableAudio3AudioToAudioPipeline", "StableAudio3InpaintPipeline",
        "StableAudio3Pipeline", "StableAudioPipeline",
    ),
    "it makes proteins": ("RFD4ProteinaPipeline",),
    "its transformer is given indices of a codebook, and no latent": (
        "AmusedImg2ImgPipeline", "AmusedInpaintPipeline", "AmusedPipeline", "VQDiffusionPipeline",
    ),
    "it makes images, by a transformer that no pipeline for videos has": (
        "BriaFibo2Pipeline", "BriaFiboEditPipeline", "BriaFiboPipeline", "BriaPipeline", "CogView3PlusPipeline",
        "DiTPipeline", "ErnieImagePipeline", "GlmImagePipeline", "HunyuanDiTControlNetPipeline",
        "HunyuanDiTPAGPipeline", "HunyuanDiTPipeline", "HunyuanImagePipeline", "HunyuanImageRefinerPipeline",
        "Ideogram4Pipeline", "JoyImageEditPipeline", "JoyImageEditPlusPipeline", "Krea2Pipeline",
        "LongCatImageEditPipeline", "LongCatImagePipeline", "LuminaPipeline", "NucleusMoEImagePipeline",
        "OmniGenPipeline", "OvisImagePipeline", "PRXPipeline", "PRXPixelPipeline", "QwenImage21Pipeline",
    ),
}  # fmt: skip


def with_a_transformer() -> dict[str, str]:
    """Every pipeline of diffusers that is made with a transformer, and the class of that, by the text of their files.
    """  # fmt: skip
    folder = Path(diffusers.__file__).parent / "pipelines"
    return dict(found for path in sorted(folder.rglob("pipeline_*.py")) for found in _in_file(path))


def _in_file(path: Path) -> Iterator[tuple[str, str]]:
    for part in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(part, ast.ClassDef) or not part.name.endswith("Pipeline"):
            continue
        for method in part.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                kinds = {a.arg: a.annotation for a in (*method.args.args, *method.args.kwonlyargs)}
                slot = next((kinds[s] for s in _SLOTS if s in kinds), None)
                if any(s in kinds for s in _SLOTS):
                    yield part.name, ast.unparse(slot).strip("'\"") if slot is not None else ""
