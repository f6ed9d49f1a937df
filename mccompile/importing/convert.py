"""From the configuration of another tool to a policy that passes the checker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mccompile.diagnostics.source import Source
from mccompile.importing import cache_dit, diffusers_hooks, lightx2v, sglang, vllm_omni
from mccompile.importing.errors import ToolUnknown
from mccompile.importing.keys import LOST, KeyNote, Keys
from mccompile.importing.reading import read_config
from mccompile.importing.writing import PolicyDraft
from mccompile.language.load import load_policy

ConfigValues = Mapping[str, object]
TOOLS: Mapping[str, Callable[[str, ConfigValues], tuple[PolicyDraft, list[Keys]]]] = {
    "cache-dit": cache_dit.translate, "diffusers": diffusers_hooks.translate, "lightx2v": lightx2v.translate,
    "sglang": sglang.translate, "vllm-omni": vllm_omni.translate,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Imported:
    """A policy that was made of a configuration. tool: whose it is. text: of the policy, which `load_policy` takes.

    keys: what became of every key of the file.
    """

    tool: str
    text: str
    keys: tuple[KeyNote, ...]

    def lost(self) -> tuple[KeyNote, ...]:
        """The keys that the policy does not say."""
        return tuple(note for note in self.keys if note.fate in LOST)


def import_config(path: Path, tool: str | None = None) -> Imported:
    """The policy of a configuration file; tool: one of TOOLS, or None to find it by the keys.

    Raises ConfigError: a file that cannot be read (MC0901), a tool or class that is not known (MC0902), a method that
    no policy can say (MC0903), a value that cannot be translated (MC0904).
    """
    values = read_config(path)
    found = tool or tool_of(values)
    if not found:
        cause = f"none of its keys is one of a known tool: {', '.join(list(values)[:8]) or 'it has none'}"
        raise ToolUnknown(str(path), cause, "", tuple(TOOLS))
    draft, sections = TOOLS[found](str(path), values)
    keys = tuple(note for section in sections for note in section.told())
    text = draft.text([f"{note.fate}: {note.key}" + (f" ({note.note})" if note.note else "") for note in keys
                       if note.fate in LOST])  # fmt: skip
    load_policy(Source.of_text(text, "imported.policy"))
    return Imported(found, text, keys)


def tool_of(values: ConfigValues) -> str:
    """The tool that has most of the keys of a file; "" where none has one."""
    if diffusers_hooks.class_of(values):
        return "diffusers"
    if any(key.startswith("SGLANG_") for key in values):
        return "sglang"
    names = set(values)
    if "cache_backend" in names:
        return "vllm-omni"
    if "feature_caching" in names:
        return "lightx2v"
    known = {
        "sglang": sglang.TOP | sglang.TEACACHE,
        "cache-dit": cache_dit.SECTIONS | cache_dit.KEYS,
        "lightx2v": lightx2v.CACHING,
    }
    counted = {tool: len(names & keys) for tool, keys in known.items()}
    best = max(counted, key=lambda tool: counted[tool])
    return best if counted[best] else ""
