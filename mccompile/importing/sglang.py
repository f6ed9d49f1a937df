"""SGLang diffusion: its SGLANG_CACHE_DIT_* variables, and the TeaCache parameters of a request."""

from __future__ import annotations

from collections.abc import Mapping

from mccompile.importing.cache_dit import PRESETS, Defaults, dbcache, mask_of_bins, preset_mask
from mccompile.importing.errors import NoEquivalent
from mccompile.importing.keys import Keys
from mccompile.importing.methods import nothing_cached, teacache
from mccompile.importing.writing import PolicyDraft

PREFIX = "SGLANG_CACHE_DIT_"
DEFAULTS = Defaults(front=1, back=0, threshold=0.24, warmup=4, in_a_row=3)
_VARIABLES = {
    "FN": "Fn_compute_blocks", "BN": "Bn_compute_blocks", "WARMUP": "max_warmup_steps",
    "RDT": "residual_diff_threshold", "MC": "max_continuous_cached_steps", "TAYLORSEER": "enable_taylorseer",
    "TS_ORDER": "taylorseer_order", "SCM_POLICY": "steps_computation_policy",
}  # fmt: skip
_SCM = ("SCM_PRESET", "SCM_COMPUTE_BINS", "SCM_CACHE_BINS")
VARIABLES = frozenset(PREFIX + name for name in ("ENABLED", *_VARIABLES, *_SCM))
TEACACHE = frozenset({"cache_type", "teacache_thresh", "start_skipping", "end_skipping", "skip_start_step",
                      "skip_end_step", "coefficients", "use_ret_steps", "ret_steps_coeffs",
                      "non_ret_steps_coeffs"})  # fmt: skip
TOP = frozenset({"enable_teacache", "teacache_params"})


def translate(place: str, values: Mapping[str, object]) -> tuple[PolicyDraft, list[Keys]]:
    """The policy of the variables, or of a request's `teacache_params`."""
    if any(key.startswith(PREFIX) for key in values):
        return _variables(place, values)
    top = Keys(place, "", values, TOP | TEACACHE)
    params = values.get("teacache_params")
    if "enable_teacache" in values and not top.flag("enable_teacache", False):
        top.idle("teacache_params", "`enable_teacache` is off")
        return nothing_cached("imported_exact", "imported from SGLang: TeaCache is off"), [top]
    if not isinstance(params, Mapping):
        return _teacache(top), [top]
    top.taken("teacache_params", "see its keys")
    keys = Keys(place, "teacache_params.", params, TEACACHE)
    return _teacache(keys), [top, keys]


def _variables(place: str, values: Mapping[str, object]) -> tuple[PolicyDraft, list[Keys]]:
    keys = Keys(place, "", values, VARIABLES)
    for key in values:
        if not key.startswith("SGLANG_CACHE_"):
            keys.aside(key)
    if not keys.flag(PREFIX + "ENABLED", False):
        for key in VARIABLES - {PREFIX + "ENABLED"}:
            keys.idle(key, f"`{PREFIX}ENABLED` is off")
        return nothing_cached("imported_exact", "imported from SGLang: cache-dit is off"), [keys]
    given: dict[str, object] = {}
    for name, theirs in _VARIABLES.items():
        if keys.has(PREFIX + name):
            is_flag, is_word = name == "TAYLORSEER", name == "SCM_POLICY"
            value = keys.values[PREFIX + name]
            given[theirs] = keys.flag(PREFIX + name, False) if is_flag else value
            keys.taken(PREFIX + name, f"as cache-dit's `{theirs}`" if not is_word else "")
    mask = _mask(keys)
    if mask is not None:
        given["steps_computation_mask"] = [int(step) for step in mask]
    inner = Keys(place, PREFIX, given, frozenset(given))
    return dbcache(inner, DEFAULTS, "imported_dbcache", "DBCache, imported from the variables of SGLang"), [keys]


def _mask(keys: Keys) -> tuple[bool, ...] | None:
    computed, reused = (keys.numbers(PREFIX + name) for name in ("SCM_COMPUTE_BINS", "SCM_CACHE_BINS"))
    preset = keys.word(PREFIX + "SCM_PRESET", "none", ("none", *PRESETS), "the mask of runs of 28 steps")
    if computed is not None and reused is not None:
        return mask_of_bins(tuple(map(int, computed)), tuple(map(int, reused)))
    return None if preset == "none" else preset_mask(preset)


def _teacache(keys: Keys) -> PolicyDraft:
    kind = keys.word("cache_type", "teacache", ("teacache", "magcache"))
    if kind == "magcache":
        raise NoEquivalent(keys.place, kind, "SGLang takes the ratios from its own table", "import it from diffusers")
    threshold = keys.number("teacache_thresh", 0.0)
    if threshold <= 0:
        raise keys.refuse("teacache_thresh", "a number above 0: with this one nothing is ever reused")
    retained = keys.flag("use_ret_steps", True, "the source: `modulation`, or `time_embedding`")
    coefficients = keys.numbers("coefficients")
    of_wan = [keys.numbers(key) for key in ("ret_steps_coeffs", "non_ret_steps_coeffs")]
    coefficients = coefficients or of_wan[0 if retained else 1]
    if coefficients is None:
        raise keys.refuse("coefficients", "the coefficients of the fit: SGLang's own for a model are not in the file")
    first = _steps(keys, "start_skipping", _steps(keys, "skip_start_step", 5))
    last = _last(keys)
    source = "modulation" if retained else "time_embedding"
    says = "TeaCache, imported from the parameters of SGLang"
    return teacache("imported_teacache", says, threshold, coefficients, source, first, last)


def _steps(keys: Keys, key: str, default: int) -> int:
    value = keys.values.get(key)
    if isinstance(value, float) and not value.is_integer():
        raise keys.refuse(key, "a number of steps: a share of a run is not one")
    return keys.whole(key, default, 0, "counted from step 0, as SGLang's code does")


def _last(keys: Keys) -> int:
    """The last steps that are computed: `end_skipping` counts from the end, `skip_end_step` is their number."""
    value = keys.values.get("end_skipping")
    if value is not None:
        end = keys.number("end_skipping", -1.0, "a negative one counts from the end")
        if end >= 0 or not end.is_integer():
            raise keys.refuse("end_skipping", "a negative whole number: a policy counts last steps from the end")
        return -int(end)
    after = keys.whole("skip_end_step", 0, 0)
    return after or (1 if "skip_start_step" not in keys.values else 0)
