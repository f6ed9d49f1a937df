"""The keys of a configuration: each of them is translated, has no equivalent, or is not known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mccompile.diagnostics.diagnostic import nearest
from mccompile.importing.errors import ValueRefused

Fate = Literal["translated", "not needed", "not about caching", "no equivalent", "unknown key"]
_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
LOST: frozenset[Fate] = frozenset({"no equivalent", "unknown key"})


@dataclass(frozen=True, slots=True)
class KeyNote:
    """What became of one key, and why."""

    key: str
    fate: Fate
    note: str


@dataclass(slots=True)
class Keys:
    """The values of one section of a configuration, taken key by key.

    place: the file, for errors. prefix: of the section, "" at the top. known: every key that the tool knows here.
    """

    place: str
    prefix: str
    values: Mapping[str, object]
    known: frozenset[str]
    notes: dict[str, KeyNote] = field(default_factory=dict)

    def told(self) -> tuple[KeyNote, ...]:
        """What became of every key, in the order of the file."""
        for key in self.values:
            if key not in self.notes:
                near = nearest(key, self.known)
                self._note(key, "unknown key", f"did you mean `{near}`?" if near else "the tool has no such key")
        return tuple(self.notes[key] for key in self.values)

    def _note(self, key: str, fate: Fate, note: str) -> None:
        self.notes[key] = KeyNote(self.prefix + key, fate, note)

    def has(self, key: str) -> bool:
        """The key is there, and not null."""
        return self.values.get(key) is not None

    def taken(self, key: str, note: str = "") -> None:
        """The key is translated."""
        if key in self.values:
            self._note(key, "translated", note)

    def idle(self, key: str, why: str) -> None:
        """The key needs no translation."""
        if key in self.values:
            self._note(key, "not needed", why)

    def aside(self, key: str, why: str = "it says nothing of caching") -> None:
        """The key is about something else."""
        if key in self.values:
            self._note(key, "not about caching", why)

    def lost(self, key: str, why: str, unless: object = None) -> None:
        """The key has no equivalent. Null, and the value that switches it off, is no loss."""
        if key in self.values:
            off = self.values[key] is None or self.values[key] == unless
            self._note(key, "not needed" if off else "no equivalent", "it is switched off" if off else why)

    def refuse(self, key: str, want: str) -> ValueRefused:
        """The error of a value that is not `want`."""
        return ValueRefused(self.place, self.prefix + key, self.values.get(key), want)

    def number(self, key: str, default: float, note: str = "") -> float:
        """A finite number; text that is one counts, as environment variables are text."""
        if not self.has(key):
            self.taken(key, "null: the default")
            return default
        value = self.values[key]
        try:
            found = math.nan if isinstance(value, bool) else float(str(value))
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            raise self.refuse(key, "a number")
        self.taken(key, note)
        return found

    def whole(self, key: str, default: int, least: int, note: str = "") -> int:
        """A whole number of at least `least`."""
        found = self.number(key, float(default), note)
        if not found.is_integer() or found < least:
            raise self.refuse(key, f"a whole number of at least {least}")
        return int(found)

    def flag(self, key: str, default: bool, note: str = "") -> bool:
        """Yes or no."""
        if not self.has(key):
            self.taken(key, "null: the default")
            return default
        found = _FLAGS.get(str(self.values[key]).lower())
        if found is None:
            raise self.refuse(key, "true or false")
        self.taken(key, note)
        return found

    def word(self, key: str, default: str, among: Sequence[str], note: str = "") -> str:
        """One of some words."""
        found = str(self.values[key]) if self.has(key) else default
        if found not in among:
            raise self.refuse(key, " or ".join(f"`{word}`" for word in among))
        self.taken(key, note)
        return found

    def needed(self, key: str, want: str) -> tuple[float, ...]:
        """A list of numbers that must be there. want: what to give, where it is not."""
        found = self.numbers(key)
        if found is None:
            raise self.refuse(key, want)
        return found

    def numbers(self, key: str, note: str = "") -> tuple[float, ...] | None:
        """A list of numbers, also as text with commas; None where there is none, or an empty one."""
        value = self.values.get(key)
        if isinstance(value, str):
            value = [part for part in value.strip("[] ").split(",") if part.strip()]
        if not value:
            self.taken(key, "empty: the default")
            return None
        try:
            found = tuple(float(str(item)) for item in value) if isinstance(value, list | tuple) else (math.nan,)
        except ValueError:
            found = (math.nan,)
        if not all(map(math.isfinite, found)):
            raise self.refuse(key, "a list of numbers")
        self.taken(key, note)
        return found
