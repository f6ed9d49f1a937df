"""Signs and forms of other languages, and what stands for them here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Edit, Help
from mccompile.diagnostics.source import Source
from mccompile.language.errors.layers import PICKED

_SIGNS: dict[str, tuple[str, str | None]] = {  # the sign: what to do, and what stands for it
    ";": ("line ends and `;` have no meaning: leave it out", ""),
    "//": ("a comment begins with `#`", "#"),
    "/*": ("a comment begins with `#` and ends with its line", None),
    "&&": ("conditions are joined by `and`", "and"),
    "||": ("conditions are joined by `or`", "or"),
    "==": ("numbers are compared by `<`, `<=`, `>` or `>=`", None),
    "!=": ("numbers are compared by `<`, `<=`, `>` or `>=`", None),
    "!": ("a condition is turned round by `not`", "not "),
    ":=": ("a value is given by `=`", "="),
    "**": ("a power is written `^`", "^"),
    "'": ('a string stands in double quotes: `"flux"`', '"'),
    "`": ('a string stands in double quotes: `"flux"`', '"'),
    "≤": ("this comparison is two signs", "<="),
    "≥": ("this comparison is two signs", ">="),
    "×": ("a product is written `*`", "*"),
    "·": ("a product is written `*`", "*"),
    "÷": ("a quotient is written `/`", "/"),
    "…": ("a range is written with two dots", ".."),
    "%": ("the sign of a percentage stands right behind its number: `40%`", None),
    "\ufeff": ("this invisible sign is a byte order mark: leave it out", ""),
    "\u00a0": ("this invisible sign is a no-break space: write a plain one", " "),
    "\u200b": ("this invisible sign is a space without width: leave it out", ""),
}
_QUOTES = dict.fromkeys("“”„‟«»‘’‚‛", ('a string stands in straight double quotes: `"flux"`', '"'))
_DASHES = dict.fromkeys("‐‑‒–—−", ("the sign of a difference is the plain `-`", "-"))
_KNOWN = {**_SIGNS, **_QUOTES, **_DASHES}
_LENGTHS = (2, 1)


@dataclass(frozen=True, slots=True)
class Foreign:
    """What stands where the parser refused. accepts: the terminals that it would have taken, none where unknown."""

    source: Source
    start: int
    accepts: frozenset[str] = frozenset()

    def helps(self) -> tuple[Help, ...]:
        """The right form, where the text has a known foreign one."""
        text = self.source.text
        before = text[: self.start]
        if before.strip() in ("", "policy") and re.match(r"\s*[\[{]|\s*[\w.-]+\s*:(?!=)|\s*---", text):
            return (Help("this looks like JSON or YAML; a policy is written `policy NAME { ... }`"),)
        if re.search(r"\[[^\]\[\n]*$", before) and text.startswith(":", self.start):
            return (self._edit("a range of blocks is written with two dots: `blocks[2..-2]`", self.start, 1, ".."),)
        if text.startswith("-", self.start) and "_DOTS" in self.accepts:
            return (self._edit("a range is written with two dots: `0.01..0.5`", self.start, 1, ".."),)
        if re.search(r"%\s*$", before) and text.startswith("of", self.start) and "_STEPS" in self.accepts:
            return (Help("a phase counts steps; a share of the run is `while fraction < 10%`"),)
        if re.search(r"\bcache\s*\{[^{}]*\bkeep\s*$", before):
            return (Help(PICKED),)
        named = "RBRACE" in self.accepts and re.compile(r"\w+\s*:(?!=)").match(text, self.start)
        if named and re.search(r"\bphase\b[^{}]*\{[^{}]*$", before):
            each = "`cond: compute every 2 steps  uncond: compute every 3 steps`"
            return (Help(f"where one rule of a phase is for a branch or for some layers, each is: {each}"),)
        return self._sign()

    def _sign(self) -> tuple[Help, ...]:
        """The longest known sign that begins here, or that ends with the character here."""
        text = self.source.text
        for length in _LENGTHS:
            for first in (self.start, self.start - length + 1):
                sign = text[max(first, 0) : first + length]
                if first >= 0 and sign in _KNOWN and len(sign) == length:
                    why, right = _KNOWN[sign]
                    return (Help(why) if right is None else self._edit(why, first, length, right),)
        return ()

    def _edit(self, why: str, start: int, length: int, right: str) -> Help:
        return Help(why, Edit(self.source.span(start, start + length), right))


def sizes(found: str) -> str | None:
    """`2gb` as `2GB`; None where it is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg])(i?)b", found, re.IGNORECASE)
    return None if match is None else f"{match[1]}{match[2].upper()}{match[3].lower()}B"
