"""A Wan pipeline of the embedded model's parts, for peers that run on Wan and not on SkyReels-V2.

SkyReels-V2 is Wan 2.1's transformer with a timestep per frame. In diffusers both classes have the same weights under
the same names, so the embedded model's weights make a Wan model. All its frames are at one timestep, and attention
covers the whole video. It generates a still picture in the requested colour, although it was trained to move it.
"""

from __future__ import annotations

import inspect

from diffusers import WanPipeline, WanTransformer3DModel

from mccompile.generate.compare import capture_for
from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.run import EMBEDDED_SETTINGS, Settings, call_arguments
from mccompile.studio.bench.generations import GenerationJob, Policies

SETTINGS = Settings(
    prompt=EMBEDDED_SETTINGS.prompt,
    num_inference_steps=30,
    num_frames=EMBEDDED_SETTINGS.num_frames,
    height=EMBEDDED_SETTINGS.height,
    width=EMBEDDED_SETTINGS.width,
    guidance_scale=1.0,  # one branch: PyramidAttentionBroadcast and FasterCache count calls, two would be mixed up
)
POLICIES: Policies = {
    "taylorseer_lite": tuple({"interval": float(n), "warmup": 4.0} for n in (2, 3, 4, 5, 6, 8)),
    "teacache_embedded_taylor": tuple({"threshold": t} for t in (0.03, 0.1, 0.15, 0.25, 0.3)),
    "abcache": ({},),
    "motioncache_embedded": ({"threshold": 0.1}, {"threshold": 0.2}),
    "magcache_embedded": ({},),
    "teacache_embedded": ({"threshold": 0.05}, {"threshold": 0.1}, {"threshold": 0.2}),
    "fbcache": ({"threshold": 0.08}, {"threshold": 0.1}, {"threshold": 0.2}),
    "dbcache": ({"threshold": 0.1}, {"threshold": 0.2}),
}


def pipeline(place: Placement) -> WanPipeline:
    """The embedded model as a Wan pipeline."""
    source = load_pipeline(find_folder(EMBEDDED), place)
    accepted = inspect.signature(WanTransformer3DModel.__init__).parameters
    transformer = WanTransformer3DModel(**{k: v for k, v in source.transformer.config.items() if k in accepted})
    transformer.load_state_dict(source.transformer.state_dict(), assign=True)  # the very tensors: no cast
    source.vae.register_to_config(
        scale_factor_temporal=source.vae_scale_factor_temporal, scale_factor_spatial=source.vae_scale_factor_spatial
    )
    pipe = WanPipeline(
        tokenizer=source.tokenizer, text_encoder=source.text_encoder, vae=source.vae, scheduler=source.scheduler,
        transformer=transformer.to(source.transformer.device).eval(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(place: Placement, settings: Settings = SETTINGS) -> GenerationJob:
    """The pipeline, captured. It is not judged: the judge asks for motion."""
    pipe = pipeline(place)
    call = call_arguments(pipe, settings)
    return GenerationJob(pipe, call, capture_for(pipe, call), None)
