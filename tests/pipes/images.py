"""The main pipelines for images."""

from __future__ import annotations

import diffusers as D
import torch

from tests.pipes.parts import (
    DIM,
    HEADS,
    IMAGE,
    IMAGE_SMALLER,
    LENGTH,
    Arguments,
    Case,
    embeds,
    euler,
    image_vae,
    made,
    masked,
    picture,
    pipe,
    pooled,
    texts,
)  # fmt: skip

_ONE_TEXT = {"text_encoder": None, "tokenizer": None, "vae": None}
_TWO_TEXTS = {**_ONE_TEXT, "text_encoder_2": None, "tokenizer_2": None}
_THREE_TEXTS = {**_TWO_TEXTS, "text_encoder_3": None, "tokenizer_3": None}
_GUIDED = {**IMAGE, "guidance_scale": 3.0}
_FLAT = {
    "patch_size": 1, "in_channels": 8, "num_layers": 1, "num_single_layers": 2, "joint_attention_dim": DIM,
    "axes_dims_rope": (12, 12, 12), **HEADS,
}  # fmt: skip
_TRUE_OFF: Arguments = {"true_cfg_scale": 1.0}
_SKIPPED = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}


def _flux(kind: type, vae: object = None) -> object:
    model = made(D.FluxTransformer2DModel, **_FLAT, pooled_projection_dim=8, guidance_embeds=True)
    return pipe(kind, **{**_TWO_TEXTS, "vae": vae}, scheduler=euler(), transformer=model)


def _flux_call(prompts: int, guided: bool = False, **more: object) -> dict[str, object]:
    call = {**IMAGE, "prompt": None, "prompt_embeds": embeds(prompts), "pooled_prompt_embeds": pooled(prompts)}
    negative = {
        "true_cfg_scale": 3.0, "negative_prompt_embeds": embeds(prompts, 9),
        "negative_pooled_prompt_embeds": pooled(prompts, 9),
    }  # fmt: skip
    return {**call, **(negative if guided else {}), **more}


def _flux2() -> object:
    model = made(
        D.Flux2Transformer2DModel, patch_size=1, in_channels=16, num_layers=1, num_single_layers=2,
        joint_attention_dim=DIM, axes_dims_rope=(8, 8, 8, 12), **HEADS,
    )  # fmt: skip
    vae = made(
        D.AutoencoderKLFlux2, sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
        latent_channels=4, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return pipe(D.Flux2Pipeline, **{**_ONE_TEXT, "vae": vae}, scheduler=euler(), transformer=model)


def _sd3(kind: type, vae: object = None) -> object:
    model = made(
        D.SD3Transformer2DModel, sample_size=32, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16,
        num_attention_heads=2, caption_projection_dim=32, joint_attention_dim=DIM, pooled_projection_dim=8,
        out_channels=4, pos_embed_max_size=24,
    )  # fmt: skip
    return pipe(kind, **{**_THREE_TEXTS, "vae": vae}, scheduler=euler(shift=3.0), transformer=model)


def _sd3_call(prompts: int, **more: object) -> dict[str, object]:
    both = {"pooled_prompt_embeds": pooled(prompts), "negative_pooled_prompt_embeds": pooled(prompts, 9)}
    return {**_GUIDED, **texts(prompts), **both, **more}


def _chroma() -> object:
    model = made(
        D.ChromaTransformer2DModel, **_FLAT, approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    return pipe(D.ChromaPipeline, **_ONE_TEXT, scheduler=euler(), transformer=model)


def _qwen() -> object:
    model = made(
        D.QwenImageTransformer2DModel, patch_size=2, in_channels=16, out_channels=4, num_layers=2,
        joint_attention_dim=DIM, axes_dims_rope=(12, 12, 12), **HEADS,
    )  # fmt: skip
    return pipe(D.QwenImagePipeline, **_ONE_TEXT, scheduler=euler(), transformer=model)


def _qwen_call(prompts: int) -> dict[str, object]:
    mask = torch.ones(prompts, LENGTH, dtype=torch.long)
    both = {"prompt_embeds_mask": mask, "negative_prompt_embeds_mask": mask.clone()}
    return {**IMAGE, **texts(prompts), **both, "true_cfg_scale": 3.0}


def _pixart(kind: type) -> object:
    model = made(
        D.PixArtTransformer2DModel, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8,
        num_layers=2, cross_attention_dim=32, attention_bias=True, sample_size=32, patch_size=2, caption_channels=DIM,
        norm_eps=1e-6, use_additional_conditions=False,
    )  # fmt: skip
    return pipe(kind, **_ONE_TEXT, scheduler=D.DPMSolverMultistepScheduler(), transformer=model)


def _pixart_call(prompts: int) -> dict[str, object]:
    return {**_GUIDED, **masked(prompts), "negative_prompt": None, "use_resolution_binning": False}


def _lumina2() -> object:
    model = made(
        D.Lumina2Transformer2DModel, sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128), cap_feat_dim=DIM,
    )  # fmt: skip
    return pipe(D.Lumina2Pipeline, **_ONE_TEXT, scheduler=euler(), transformer=model)


def _z_image() -> object:
    model = made(
        D.ZImageTransformer2DModel, all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=64, n_layers=2,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, qk_norm=True, cap_feat_dim=DIM, rope_theta=256.0, t_scale=1000.0,
        axes_dims=[8, 12, 12], axes_lens=[256, 64, 64],
    )  # fmt: skip
    return pipe(D.ZImagePipeline, **_ONE_TEXT, scheduler=euler(), transformer=model)


def _z_image_call(prompts: int) -> dict[str, object]:
    both = {"prompt_embeds": list(embeds(prompts)), "negative_prompt_embeds": list(embeds(prompts, 9))}
    return {**_GUIDED, "prompt": None, **both}


def _sana() -> object:
    model = made(
        D.SanaTransformer2DModel, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=DIM, sample_size=32,
    )  # fmt: skip
    return pipe(D.SanaPipeline, **_ONE_TEXT, scheduler=euler(), transformer=model)


def _aura() -> object:
    model = made(
        D.AuraFlowTransformer2DModel, sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1,
        num_single_dit_layers=2, attention_head_dim=16, num_attention_heads=2, caption_projection_dim=32,
        joint_attention_dim=DIM, out_channels=4, pos_embed_max_size=256,
    )  # fmt: skip
    return pipe(D.AuraFlowPipeline, **_ONE_TEXT, scheduler=euler(), transformer=model)


def _cogview4() -> object:
    model = made(
        D.CogView4Transformer2DModel, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, out_channels=4, text_embed_dim=DIM, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    return pipe(D.CogView4Pipeline, **_ONE_TEXT, scheduler=euler(), transformer=model)


def _hidream() -> object:
    model = made(
        D.HiDreamImageTransformer2DModel, patch_size=2, in_channels=4, num_layers=1, num_single_layers=2,
        attention_head_dim=8, num_attention_heads=2, caption_channels=[DIM, 12], text_emb_dim=8,
        axes_dims_rope=(4, 2, 2), max_resolution=(16, 16), llama_layers=[0, 1, 1], num_routed_experts=2,
        num_activated_experts=1,
    )  # fmt: skip
    fourth = {"text_encoder_4": None, "tokenizer_4": None}
    found = pipe(D.HiDreamImagePipeline, **_THREE_TEXTS, **fourth, scheduler=euler(), transformer=model)
    found.default_sample_size = 16  # type: ignore[attr-defined]  # every image is scaled to as many pixels
    return found


def _hidream_call(prompts: int) -> dict[str, object]:
    call: dict[str, object] = {**_GUIDED, "prompt": None}
    for name, seed in (("", 0), ("negative_", 9)):
        layers = torch.stack([embeds(prompts, seed + 1 + layer, dim=12) for layer in range(2)])
        call |= {
            f"{name}prompt_embeds_t5": embeds(prompts, seed), f"{name}prompt_embeds_llama3": layers,
            f"{name}pooled_prompt_embeds": pooled(prompts, seed),
        }  # fmt: skip
    return call


CASES = (
    Case("FluxPipeline", lambda: _flux(D.FluxPipeline), _flux_call, IMAGE_SMALLER, None),
    Case(
        "FluxPipeline, true guidance", lambda: _flux(D.FluxPipeline), lambda n: _flux_call(n, guided=True),
        IMAGE_SMALLER,
        _TRUE_OFF,
    ),
    Case("Flux2Pipeline", _flux2, lambda n: {**IMAGE, "prompt": None, "prompt_embeds": embeds(n)}, IMAGE_SMALLER, None),
    Case("StableDiffusion3Pipeline", lambda: _sd3(D.StableDiffusion3Pipeline), _sd3_call, IMAGE_SMALLER),
    Case(
        "StableDiffusion3Pipeline, layers skipped", lambda: _sd3(D.StableDiffusion3Pipeline),
        lambda n: _sd3_call(n, **_SKIPPED), IMAGE_SMALLER,
    ),
    Case(
        "ChromaPipeline", _chroma, lambda n: {**_GUIDED, **masked(n)}, IMAGE_SMALLER
    ),
    Case("QwenImagePipeline", _qwen, _qwen_call, IMAGE_SMALLER, _TRUE_OFF),
    Case("PixArtSigmaPipeline", lambda: _pixart(D.PixArtSigmaPipeline), _pixart_call, IMAGE_SMALLER),
    Case("PixArtAlphaPipeline", lambda: _pixart(D.PixArtAlphaPipeline), _pixart_call, IMAGE_SMALLER),
    Case("Lumina2Pipeline", _lumina2, lambda n: {**_GUIDED, **masked(n, torch.bool)}, IMAGE_SMALLER),
    Case("ZImagePipeline", _z_image, _z_image_call, IMAGE_SMALLER),
    Case(
        "SanaPipeline", _sana, lambda n: {**_pixart_call(n), "height": 96, "width": 128}, IMAGE_SMALLER
    ),
    Case("AuraFlowPipeline", _aura, lambda n: {**_GUIDED, **masked(n)}, IMAGE_SMALLER),
    Case("HiDreamImagePipeline", _hidream, _hidream_call, IMAGE_SMALLER),
    Case("CogView4Pipeline", _cogview4, lambda n: {**_GUIDED, **texts(n)}, IMAGE_SMALLER),
    Case(
        "FluxImg2ImgPipeline", lambda: _flux(D.FluxImg2ImgPipeline, image_vae(2)),
        lambda n: _flux_call(n, image=picture(96, 128), strength=0.8), IMAGE_SMALLER, None,
    ),
    Case(
        "FluxKontextPipeline", lambda: _flux(D.FluxKontextPipeline, image_vae(2)),
        lambda n: _flux_call(n, image=picture(96, 128), _auto_resize=False, max_area=96 * 128), IMAGE_SMALLER, None,
    ),
    Case(
        "StableDiffusion3Img2ImgPipeline", lambda: _sd3(D.StableDiffusion3Img2ImgPipeline, image_vae()),
        lambda n: _sd3_call(n, image=picture(96, 128), strength=0.8), IMAGE_SMALLER,
    ),
)  # fmt: skip
