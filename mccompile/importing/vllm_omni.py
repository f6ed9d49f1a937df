"""vLLM-Omni: `cache_backend` and `cache_config` of its diffusion stages."""

from __future__ import annotations

from collections.abc import Mapping

from mccompile.importing.cache_dit import KEYS as CACHE_DIT
from mccompile.importing.cache_dit import PRESETS, Defaults, dbcache, preset_mask
from mccompile.importing.errors import NoEquivalent
from mccompile.importing.keys import Keys
from mccompile.importing.methods import MAG_RATIOS, first_share, magcache, nothing_cached, teacache
from mccompile.importing.writing import PolicyDraft

BACKENDS = ("cache_dit", "tea_cache", "mag_cache", "sea_cache", "step_cache", "none")
DEFAULTS = Defaults(front=1, back=0, threshold=0.24, warmup=4, in_a_row=3)
TEA = frozenset({"rel_l1_thresh", "coefficients"})
MAG = frozenset({"mag_threshold", "mag_max_skip_steps", "mag_retention_ratio", "mag_ratios", "mag_calibrate"})
SCM = frozenset({"scm_steps_mask_policy", "scm_steps_policy"})
OTHER = frozenset({
    "sea_threshold", "sea_residual_order", "sea_max_consecutive_cached", "sea_power_exp", "step_cache_dit_enabled",
    "velocity_sim_thresholds", "velocity_skip_countdowns", "step_cache_dit_min_history", "step_cache_dit_max_history",
})  # fmt: skip
TOP = frozenset({"cache_backend", "cache_config"})
ASIDE = frozenset({"model", "dtype", "num_gpus", "parallel_config", "enable_cpu_offload", "enforce_eager", "lora_path",
                   "enable_cache_dit_summary", "quantization", "vae_use_slicing", "vae_use_tiling"})  # fmt: skip
_OF = {"cache_dit": CACHE_DIT | SCM, "tea_cache": TEA, "mag_cache": MAG}
_NO_POLICY = {
    "sea_cache": "it filters the input by frequencies, and no signal does",
    "step_cache": "it compares the velocities of the sampler, and no signal does",
}


def translate(place: str, values: Mapping[str, object]) -> tuple[PolicyDraft, list[Keys]]:
    """The policy of a backend with its configuration."""
    top = Keys(place, "", values, TOP | ASIDE)
    for key in ASIDE:
        top.aside(key)
    backend = top.word("cache_backend", "none", BACKENDS)
    if backend in _NO_POLICY:
        raise NoEquivalent(place, backend, _NO_POLICY[backend], "use `cache_dit`, `tea_cache` or `mag_cache`")
    top.taken("cache_config", "see its keys")
    section = values.get("cache_config") or {}
    if not isinstance(section, Mapping):
        raise top.refuse("cache_config", "a section of keys")
    if backend == "none":
        top.idle("cache_config", "`cache_backend` is none")
        return nothing_cached("imported_exact", "imported from vLLM-Omni: nothing is cached"), [top]
    keys = Keys(place, "cache_config.", section, _OF[backend] | OTHER | TEA | MAG | CACHE_DIT | SCM)
    for key in (OTHER | TEA | MAG | CACHE_DIT | SCM) - _OF[backend]:
        keys.idle(key, f"`{backend}` does not read it")
    make = {"cache_dit": _cache_dit, "tea_cache": _tea, "mag_cache": _mag}[backend]
    return make(keys), [top, keys]


def _cache_dit(keys: Keys) -> PolicyDraft:
    policy = keys.word("scm_steps_policy", "dynamic", ("dynamic", "static"))
    given = {key: value for key, value in keys.values.items() if key not in SCM}
    if keys.has("scm_steps_mask_policy"):
        preset = keys.word("scm_steps_mask_policy", "", tuple(PRESETS), "the mask of runs of 28 steps")
        given |= {"steps_computation_mask": [int(s) for s in preset_mask(preset)], "steps_computation_policy": policy}
    else:
        keys.taken("scm_steps_mask_policy", "null: no mask")
    inner = Keys(keys.place, keys.prefix, given, keys.known)
    draft = dbcache(inner, DEFAULTS, "imported_dbcache", "DBCache, imported from vLLM-Omni's cache_dit backend")
    keys.notes |= {key: note for key, note in inner.notes.items() if key in keys.values}
    return draft


def _tea(keys: Keys) -> PolicyDraft:
    threshold = keys.number("rel_l1_thresh", 0.2)
    coefficients = keys.needed("coefficients", "those of the fit: vLLM-Omni's own for a model are not in the file")
    says = "TeaCache, imported from vLLM-Omni's tea_cache backend"
    return teacache("imported_teacache", says, threshold, coefficients, "modulated_input", 1, 0)


def _mag(keys: Keys) -> PolicyDraft:
    if keys.flag("mag_calibrate", False):
        return nothing_cached("imported_magcache", "MagCache while it calibrates: everything is computed")
    ratios = keys.needed("mag_ratios", MAG_RATIOS)
    first = first_share(keys, "mag_retention_ratio", 0.1)
    threshold, in_a_row = keys.number("mag_threshold", 0.24), keys.whole("mag_max_skip_steps", 5, 1)
    says = "MagCache, imported from vLLM-Omni's mag_cache backend"
    return magcache("imported_magcache", says, threshold, in_a_row, first, ratios, "<")
