"""cache-dit 1.5.3: `cache_config` of its YAML and JSON files, flat or in a section; also what builds upon it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mccompile.importing.errors import NoEquivalent
from mccompile.importing.keys import Keys
from mccompile.importing.methods import MOST_STEPS, first_blocks, nothing_cached
from mccompile.importing.writing import PolicyDraft, bins, ranges

SECTIONS = frozenset({"cache_config", "parallelism_config", "attention_backend", "quantize_config", "compile_config"})
CALIBRATORS = frozenset({
    "enable_taylorseer", "enable_encoder_taylorseer", "taylorseer_cache_type", "taylorseer_order", "enable_dmd",
    "enable_encoder_dmd", "dmd_history", "dmd_rank", "dmd_ridge", "dmd_svd_precision", "enable_foca",
    "enable_encoder_foca", "calibrator_cache_type",
})  # fmt: skip
_FOCA_KIND = "calibrator_cache_type"
_FOCA = (
    "kept(KEPT) + min(step - kept(step), 9 / (step - kept(step))) / 2"
    " * (kept(KEPT) - kept(KEPT, 2) + before(KEPT) - before(before(KEPT)))"
)
"""Its differences are as they are, however many steps lie between, and it goes no further than three steps lead."""

KEYS = CALIBRATORS | {
    "cache_type", "Fn_compute_blocks", "Bn_compute_blocks", "residual_diff_threshold",
    "max_accumulated_residual_diff_threshold", "max_warmup_steps", "warmup_interval", "max_cached_steps",
    "max_continuous_cached_steps", "enable_separate_cfg", "cfg_compute_first", "cfg_diff_compute_separate",
    "num_inference_steps", "steps_computation_mask", "steps_computation_policy", "force_refresh_step_hint",
    "force_refresh_step_policy",
}  # fmt: skip
PRESETS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)), "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)), "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}  # fmt: skip
PRESET_STEPS = 28


@dataclass(frozen=True, slots=True)
class Defaults:
    """What cache-dit, or a tool upon it, takes where a key is not given."""

    front: int = 8
    back: int = 0
    threshold: float = 0.08
    warmup: int = 8
    in_a_row: int = -1


def dbcache(keys: Keys, defaults: Defaults, name: str, says: str) -> PolicyDraft:
    """The policy of a DBCache configuration."""
    if keys.word("cache_type", "DBCache", ("DBCache", "DBPrune", "NONE")) == "DBPrune":
        why = "it decides for every block by itself, and its keys are not translated"
        remedy = "extend the policy `dbprune`: `layers each blocks[8..] { keep residual }`, `param threshold = 0.08`"
        raise NoEquivalent(keys.place, "DBPrune", why, remedy)
    if keys.values.get("cache_type") == "NONE":
        return nothing_cached(name, says)
    front = keys.whole("Fn_compute_blocks", defaults.front, 1)
    back = keys.whole("Bn_compute_blocks", defaults.back, 0)
    threshold = keys.number("residual_diff_threshold", defaults.threshold)
    if threshold <= 0:
        raise keys.refuse("residual_diff_threshold", "a number above 0: with this one nothing is ever reused")
    warmup = keys.whole("max_warmup_steps", defaults.warmup, 0)
    interval = keys.whole("warmup_interval", 1, 1)
    total = keys.whole("max_cached_steps", -1, -1)
    in_a_row = keys.whole("max_continuous_cached_steps", defaults.in_a_row, -1)
    _others(keys)
    mask = step_mask(keys)
    keep, stand_in = forecast(keys)
    if 0 in (total, in_a_row):
        return nothing_cached(name, f"{says}; no step may be reused")
    static = keys.word("steps_computation_policy", "dynamic", ("dynamic", "static")) == "static" and mask is not None
    draft = PolicyDraft(name, says, layers=first_blocks(front, back, stand_in, keep))
    if static and mask is not None:
        sure = tuple(step or (i < warmup and i % interval == 0) for i, step in enumerate(mask))
        draft.phases.append(f"phase mask {{ {bins(sure)} }}")
        return draft
    limit = draft.param("threshold", threshold, 0.001, 1.0)
    draft.signals.append("signal change = rel_l1(probe, kept(probe), over = step)")
    guards = [f"at most {n} {what}" for n, what in ((in_a_row, "in a row"), (total, "in total")) if n > 0]
    condition = f"reuse step while change < {limit}"
    if warmup:
        first = draft.param("warmup", warmup, 0, MOST_STEPS, "steps")
        rule = " ".join([condition, f"compute all every {interval} steps", *guards]) if interval > 1 else "compute"
        draft.phases.append(f"phase warmup for {first} steps {{ {rule} }}")
    due = [i for i, step in enumerate(mask or ()) if step and i >= max(warmup, 1)]
    all_steps = [f"compute all steps {ranges(due)}"] if due else []
    draft.phases.append(f"phase cache {{ {' '.join([condition, *all_steps, *guards])} }}")
    if keys.values.get("cfg_diff_compute_separate") is False:
        draft.sections.append("branches { share decision of cond }")
    return draft


def _others(keys: Keys) -> None:
    """The keys that set nothing of the policy."""
    for key in ("enable_separate_cfg", "cfg_compute_first"):
        keys.idle(key, "the clock tells the branches apart")
    keys.flag("cfg_diff_compute_separate", True, "each branch decides for itself, or follows cond")
    keys.idle("num_inference_steps", "the run says how many steps it has")
    keys.lost("max_accumulated_residual_diff_threshold", "it adds up over the whole run; an account is cleared")
    keys.lost("force_refresh_step_hint", "it begins the warm-up again in the middle of a run")
    hint = keys.has("force_refresh_step_hint")
    keys.lost("force_refresh_step_policy", "see `force_refresh_step_hint`", keys.values.get("force_refresh_step_policy")
              if not hint else None)  # fmt: skip


def step_mask(keys: Keys) -> tuple[bool, ...] | None:
    """True for the steps that are computed in any case; None without a mask."""
    value = keys.values.get("steps_computation_mask")
    if isinstance(value, str):
        preset = keys.word("steps_computation_mask", "", tuple(PRESETS))
        if keys.values.get("num_inference_steps", PRESET_STEPS) != PRESET_STEPS:
            keys.lost("steps_computation_mask", f"the presets are those of {PRESET_STEPS} steps: write it as a list")
            return None
        return preset_mask(preset)
    found = keys.numbers("steps_computation_mask")
    if found is None:
        return None
    if not set(found) <= {0.0, 1.0}:
        raise keys.refuse("steps_computation_mask", "a list of 0 (may be reused) and 1 (computed)")
    return tuple(step == 1 for step in found)


def preset_mask(name: str) -> tuple[bool, ...]:
    """The mask of a preset, for 28 steps."""
    computed, reused = PRESETS[name]
    return mask_of_bins(computed, reused)


def mask_of_bins(computed: tuple[int, ...], reused: tuple[int, ...]) -> tuple[bool, ...]:
    """The mask of alternating stretches, a computed one first."""
    mask: list[bool] = []
    for i, n in enumerate(computed):
        mask += [True] * n + [False] * (reused[i] if i < len(reused) else 0)
    return tuple(mask)


def forecast(keys: Keys) -> tuple[str, str]:
    """What the cached blocks keep, and what stands in for it: a Taylor series, FoCa's sum, or nothing."""
    taylor = keys.flag("enable_taylorseer", False)
    kind = keys.word("taylorseer_cache_type", "residual", ("residual", "hidden_states"))
    order = keys.whole("taylorseer_order", 1, 1)
    if order > 4:
        raise keys.refuse("taylorseer_order", "an order of at most 4")
    foca = keys.flag("enable_foca", False)
    if foca and (taylor or keys.values.get("enable_dmd") is True):
        raise keys.refuse("enable_foca", "false: cache-dit takes one stand-in at a time")
    keys.lost("enable_dmd", "no stand-in of a policy is this one; the last result stands in", False)
    keys.lost("enable_encoder_dmd", "see `enable_dmd`", False)
    on = keys.values.get("enable_dmd") is True
    for key in ("dmd_history", "dmd_rank", "dmd_ridge", "dmd_svd_precision", *(() if foca else (_FOCA_KIND,))):
        keys.lost(key, "it belongs to a stand-in that no policy has", None if on else keys.values.get(key))
    for method in ("taylorseer", "foca"):
        keys.lost(f"enable_encoder_{method}", "the text's stream has no stand-in of its own", False)
    if foca:
        kind = keys.word(_FOCA_KIND, "residual", ("residual", "hidden_states"))
    keep = "output" if kind == "hidden_states" and (taylor or foca) else "residual"
    stand_in = f"taylor({keep}, order = {order})" if taylor else _FOCA.replace("KEPT", keep)
    return keep, f" reuse as {stand_in}" if taylor or foca else ""


def translate(place: str, values: Mapping[str, object]) -> tuple[PolicyDraft, list[Keys]]:
    """The policy of a cache-dit file."""
    top = Keys(place, "", values, SECTIONS | KEYS)
    section = values.get("cache_config")
    for key in SECTIONS - {"cache_config"}:
        top.aside(key)
    says = "DBCache, imported from a configuration of cache-dit"
    if not isinstance(section, Mapping):
        if "cache_config" in values:
            raise top.refuse("cache_config", "a section of keys")
        return dbcache(top, Defaults(), "imported_dbcache", says), [top]
    top.taken("cache_config", "see its keys")
    keys = Keys(place, "cache_config.", section, KEYS)
    return dbcache(keys, Defaults(), "imported_dbcache", says), [top, keys]
