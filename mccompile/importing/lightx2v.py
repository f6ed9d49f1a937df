"""LightX2V: the keys of `feature_caching` in its JSON files; a file has everything else of a run, too."""

from __future__ import annotations

from collections.abc import Mapping

from mccompile.importing.errors import NoEquivalent
from mccompile.importing.keys import Keys
from mccompile.importing.methods import MAG_RATIOS, first_share, magcache, nothing_cached, teacache
from mccompile.importing.writing import PolicyDraft

METHODS = ("NoCaching", "Tea", "TaylorSeer", "Mag", "Ada", "Custom", "FirstBlock", "DualBlock", "DynamicBlock")
_TEA = ("teacache_thresh", "coefficients", "use_ret_steps")
_MAG = ("magcache_thresh", "magcache_K", "magcache_retention_ratio", "magcache_ratios", "magcache_calibration")
_BLOCKS = ("residual_diff_threshold", "downsample_factor")
CACHING = frozenset({"feature_caching", *_TEA, *_MAG, *_BLOCKS})
ASIDE = frozenset({
    "infer_steps", "target_video_length", "text_len", "target_height", "target_width", "resolution", "resize_mode",
    "self_attn_1_type", "cross_attn_1_type", "cross_attn_2_type", "attn_type", "attention_type", "sample_guide_scale",
    "sample_shift", "enable_cfg", "cpu_offload", "offload_granularity", "offload_ratio", "t5_cpu_offload",
    "clip_cpu_offload", "vae_cpu_offload", "mm_config", "seed", "fps", "video_fps", "model_cls", "task", "model_path",
    "lora_path", "lora_configs", "strength_model", "parallel", "seq_parallel", "cfg_parallel", "vae_stride",
    "patch_size", "max_area", "do_mm_calib", "dit_quantized", "dit_quant_scheme", "dit_quantized_ckpt", "t5_quantized",
    "t5_quant_scheme", "clip_quantized", "clip_quant_scheme", "use_bfloat16", "warmup", "use_image_encoder",
    "denoising_step_list", "num_train_timesteps", "rope_type", "unload_modules", "boundary", "boundary_step_index",
})  # fmt: skip
RET_STEPS, TAYLOR_INTERVAL = 5, 4  # fixed in LightX2V's code
_NO_POLICY = {
    "Ada": "it computes blocks by a codebook of its own distances",
    "Custom": "it forecasts by the conditional branch and by TeaCache at once",
    "FirstBlock": "it compares channels that are sampled, which no distance does",
    "DualBlock": "it compares channels that are sampled, which no distance does",
    "DynamicBlock": "it decides for every block by itself, and a policy decides for a region of blocks",
}


def translate(place: str, values: Mapping[str, object]) -> tuple[PolicyDraft, list[Keys]]:
    """The policy of `feature_caching`."""
    keys = Keys(place, "", values, CACHING | ASIDE)
    for key in ASIDE:
        keys.aside(key)
    method = keys.word("feature_caching", "NoCaching", METHODS)
    for mine, of in ((_TEA, ("Tea",)), (_MAG, ("Mag",)), (_BLOCKS, ())):
        for key in mine if method not in of else ():
            keys.idle(key, f"`{method}` does not read it")
    match method:
        case "NoCaching":
            return nothing_cached("imported_exact", "imported from LightX2V: no feature is cached"), [keys]
        case "Tea":
            return _tea(keys), [keys]
        case "Mag":
            return _mag(keys), [keys]
        case "TaylorSeer":
            draft = PolicyDraft("imported_taylorseer", "TaylorSeer, imported from a configuration of LightX2V")
            draft.phases.append(f"phase cycle {{ compute every {TAYLOR_INTERVAL} steps }}")
            draft.layers = ("layers blocks[*] { keep residual reuse as taylor(residual, order = 1) }",)
            keys.taken("feature_caching", "of whole blocks; LightX2V forecasts the modules in them")
            return draft, [keys]
        case _:
            raise NoEquivalent(place, method, _NO_POLICY[method], "use `Tea`, `Mag` or `TaylorSeer`")


def _tea(keys: Keys) -> PolicyDraft:
    threshold = keys.number("teacache_thresh", 0.26)
    retained = keys.flag("use_ret_steps", False, "which fit is used, and how many first steps are computed")
    want = "the coefficients of the fit, or two lists of them"
    coefficients, of_two = _listed(keys, "coefficients", 0 if retained else 1, want)
    if of_two:
        keys.taken("coefficients", f"the {'first' if retained else 'second'} list, as `use_ret_steps` says")
    source, warmup, last = ("modulation", RET_STEPS, 0) if retained else ("time_embedding", 1, 1)
    says = "TeaCache, imported from a configuration of LightX2V"
    return teacache("imported_teacache", says, threshold, coefficients, source, warmup, last)


def _mag(keys: Keys) -> PolicyDraft:
    if keys.flag("magcache_calibration", False):
        return nothing_cached("imported_magcache", "MagCache while it calibrates: everything is computed")
    ratios, of_two = _listed(keys, "magcache_ratios", 0, MAG_RATIOS)
    if of_two:
        keys.lost("magcache_ratios", "the ratios of cond are used for both branches: a table does not know the branch")
    first = first_share(keys, "magcache_retention_ratio", 0.2)
    threshold, in_a_row = keys.number("magcache_thresh", 0.24), keys.whole("magcache_K", 6, 1)
    says = "MagCache, imported from a configuration of LightX2V"
    return magcache("imported_magcache", says, threshold, in_a_row, first, ratios, "<")


def _listed(keys: Keys, key: str, which: int, want: str) -> tuple[tuple[float, ...], bool]:
    """The numbers of a key that has one list, or two of which one is used; and whether there are two."""
    value = keys.values.get(key)
    of_two = isinstance(value, list) and len(value) == 2 and all(isinstance(part, list) for part in value)
    if not isinstance(value, list) or not of_two:
        return keys.needed(key, want), False
    found = Keys(keys.place, f"{key} ", {"used": value[which]}, frozenset()).numbers("used")
    if found is None:
        raise keys.refuse(key, want)
    return found, True
