"""diffusers 0.42.1: the cache configurations of `enable_cache`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mccompile.importing.errors import NoEquivalent, ToolUnknown
from mccompile.importing.keys import Keys
from mccompile.importing.methods import MAG_RATIOS, MOST_STEPS, first_blocks, magcache, nothing_cached
from mccompile.importing.writing import PolicyDraft

_NO_POLICY = {
    "PyramidAttentionBroadcastConfig": (
        "it reuses attention alone, of modules by their names in the model, within ranges of its own timesteps",
        "use the policy `pab`, or write it with `layers blocks[*].attn { keep output }`",
    ),
    "FasterCacheConfig": (
        "it is a whole method, which a policy already is, and it chooses modules by their names in the model",
        "use the policy `fastercache`",
    ),
    "SeaCacheConfig": ("it is a whole method, which a policy already is", "use the policy `seacache`"),
}  # fmt: skip


def _first_block(keys: Keys) -> PolicyDraft:
    draft = PolicyDraft("imported_fbcache", "First-block cache, imported from diffusers' FirstBlockCacheConfig")
    limit = draft.param("threshold", keys.number("threshold", 0.05), 0.001, 1.0)
    draft.signals.append("signal change = rel_l1(probe, kept(probe), over = step)")
    draft.phases.append(f"phase cache {{ reuse step while change <= {limit} }}")
    draft.layers = first_blocks(1, 0, "")
    return draft


def _mag(keys: Keys) -> PolicyDraft:
    if keys.flag("calibrate", False):
        return nothing_cached("imported_magcache", "MagCache while it calibrates: everything is computed")
    ratios = keys.needed("mag_ratios", MAG_RATIOS)
    steps = keys.whole("num_inference_steps", 28, 1, "the first phase is counted on it")
    retention = keys.number("retention_ratio", 0.2)
    first = int(retention * steps + 0.5)
    says = "MagCache, imported from diffusers' MagCacheConfig"
    in_a_row = keys.whole("max_skip_steps", 3, 1)
    threshold = keys.number("threshold", 0.06)
    return magcache("imported_magcache", says, threshold, in_a_row, f"for {first} steps", ratios, "<=")


def _taylorseer(keys: Keys) -> PolicyDraft:
    draft = PolicyDraft("imported_taylorseer", "TaylorSeer, imported from diffusers' TaylorSeerCacheConfig")
    interval = draft.param("interval", keys.whole("cache_interval", 5, 1), 1, 100, "steps")
    warmup = draft.param("warmup", keys.whole("disable_cache_before_step", 3, 0), 0, MOST_STEPS, "steps")
    order = keys.whole("max_order", 1, 0, "of the residual of whole blocks; diffusers forecasts modules in them")
    if order > 4:
        raise keys.refuse("max_order", "an order of at most 4")
    draft.phases.append(f"phase first for {warmup} steps {{ compute }}")
    draft.phases.append(f"phase cycle {{ compute every {interval} steps }}")
    if keys.has("disable_cache_after_step"):
        last = keys.whole("disable_cache_after_step", 0, 0)
        draft.phases.append(f"phase end while step >= {last} {{ compute }}")
    keys.taken("disable_cache_after_step", "null: to the end")
    stand_in = f" reuse as taylor(residual, order = {order})" if order else ""
    draft.layers = (f"layers blocks[*] {{ keep residual{stand_in} }}",)
    dtype = str(keys.values.get("taylor_factors_dtype", "torch.bfloat16")).removeprefix("torch.")
    if dtype not in ("float32", "bfloat16", "float16", "None"):
        raise keys.refuse("taylor_factors_dtype", "torch.float32, torch.bfloat16 or torch.float16")
    keys.taken("taylor_factors_dtype", "kept so, and computed in float32")
    if dtype != "None":
        draft.sections.append(f"cache {{ residual: {dtype} }}")
    for key in ("skip_predict_identifiers", "cache_identifiers", "use_lite_mode"):
        keys.lost(key, "the policy forecasts whole blocks, not modules in them", False)
    return draft


def _text_kv(_: Keys) -> PolicyDraft:
    return nothing_cached("imported_text_kv", "diffusers' TextKVCacheConfig: every policy keeps the text's part anyway")


_CLASSES: Mapping[str, tuple[Callable[[Keys], PolicyDraft], frozenset[str]]] = {
    "FirstBlockCacheConfig": (_first_block, frozenset({"threshold"})),
    "MagCacheConfig": (_mag, frozenset({
        "threshold", "max_skip_steps", "retention_ratio", "num_inference_steps", "mag_ratios", "calibrate"})),
    "TaylorSeerCacheConfig": (_taylorseer, frozenset({
        "cache_interval", "disable_cache_before_step", "disable_cache_after_step", "max_order", "taylor_factors_dtype",
        "skip_predict_identifiers", "cache_identifiers", "use_lite_mode"})),
    "TextKVCacheConfig": (_text_kv, frozenset()),
}  # fmt: skip
CLASSES = (*_CLASSES, *_NO_POLICY)
NAMED_BY = ("_class_name", "class", "type", "cache_type")


def class_of(values: Mapping[str, object]) -> str:
    """The name of the configuration's class: a key tells it, or it is the only key; "" where none does."""
    for key in NAMED_BY:
        if str(values.get(key, "")).endswith("Config"):
            return str(values[key])
    only = next(iter(values), "")
    return only if len(values) == 1 and only.endswith("Config") else ""


def translate(place: str, values: Mapping[str, object]) -> tuple[PolicyDraft, list[Keys]]:
    """The policy of one of diffusers' cache configurations."""
    name = class_of(values)
    if name in _NO_POLICY:
        raise NoEquivalent(place, name, *_NO_POLICY[name])
    if name not in _CLASSES:
        raise ToolUnknown(place, f"`{name}` is no cache configuration of diffusers 0.42.1", name, CLASSES)
    make, known = _CLASSES[name]
    inner = values.get(name)
    keys = Keys(place, "", inner if isinstance(inner, Mapping) else values, known)
    for key in NAMED_BY:
        keys.taken(key)
    return make(keys), [keys]
