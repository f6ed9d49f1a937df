"""Says in words why the parser refused: the expected words, the nearest keyword, the unclosed brace."""

from __future__ import annotations

import re

from lark import Token, UnexpectedCharacters, UnexpectedToken

from mccompile.diagnostics.diagnostic import Diagnostic, nearest, words
from mccompile.diagnostics.source import Source, Span
from mccompile.language.errors import syntax
from mccompile.language.foreign import Foreign, sizes

_KINDS = {
    "NAME": "a name",
    "INT": "a whole number",
    "NUMBER": "a number",
    "PERCENT": "a percentage",
    "SIZE": "a size such as `2GB`",
    "STRING": "a string",
    "GRANULARITY": "`step`, `chunk`, `frame` or `token`",
    "LT": "`<`",
    "LE": "`<=`",
    "GT": "`>`",
    "GE": "`>=`",
    "PLUS": "`+`",
    "MINUS": "`-`",
    "STAR": "`*`",
    "SLASH": "`/`",
    "CARET": "`^`",
    "_DOTS": "`..`",
    "_DOT": "`.`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "EQUAL": "`=`",
    "VBAR": "`|`",
    "$END": "the end of the policy",
    "_REFRESHES": "`refreshes`",
    "_STEPS": "`steps`",
    "_FRAMES": "`frames`",
}
_EXPRESSION = {"NUMBER", "PERCENT", "NAME", "LPAR", "MINUS"}
_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "CARET", "VBAR", "_AND", "_OR", "LT", "LE", "GT", "GE"}
_DECLARATIONS = {"_PARAM", "_SIGNAL", "_PHASE", "_LAYERS", "_INTEGRATION", "_CHUNKS", "_CACHE", "_BRANCHES"}
_CHOOSE = {"_CHOOSE", "_FUNCTION", "_USE"}
_MAX_LISTED = 8


def translate(error: UnexpectedToken | UnexpectedCharacters, source: Source) -> Diagnostic:
    """The diagnostic for a refusal of the parser."""
    if isinstance(error, UnexpectedCharacters):
        return _character(error.pos_in_stream or 0, source)
    token = error.token
    if token.type == "$END":
        opened = _unclosed_brace(source)
        end = len(source.text.rstrip())
        return syntax.EndsTooEarly(source.span(end, end), _wanted(error.accepts), opened)
    comparisons = {"LT", "LE", "GT", "GE"}
    if token.type in comparisons and _follows_comparison(token, source):
        return syntax.ChainedComparison(_place(token, source))
    if token.type == "_POLICY" and error.accepts == {"$END"}:
        return syntax.SecondPolicy(_place(token, source))
    found = str(token)
    meant = nearest(found, _spelled(error.accepts)) if found.isidentifier() else None
    meant = None if meant == found else meant
    span = _place(token, source)
    foreign = Foreign(source, span.start, frozenset(error.accepts)).helps()
    unclosed = "RBRACE" in error.accepts and token.type in _DECLARATIONS | _CHOOSE
    opened = _unclosed_brace(source, span.start) if unclosed and "_PARAM" not in error.accepts else None
    return syntax.UnexpectedWord(span, _wanted(error.accepts), f"`{found}`", meant, foreign, opened)


def _place(token: Token, source: Source) -> Span:
    assert token.start_pos is not None
    assert token.end_pos is not None
    return source.span(token.start_pos, token.end_pos)


def _character(start: int, source: Source) -> Diagnostic:
    rest = source.text[start:]
    if rest.startswith('"'):
        word = re.match(r'"[\w./-]*', rest)
        return syntax.UnclosedString(source.span(start, start + len(word[0] if word else "x")))
    number = re.match(r"[\d.][\w.%]*", rest)
    if number and re.search(r"\d", number[0]):
        span = source.span(start, start + len(number[0]))
        return syntax.InvalidNumber(span, number[0], _in_full(number[0]))
    foreign = Foreign(source, start).helps()
    return syntax.UnknownCharacter(source.span(start, start + 1), _shown(rest[0]), foreign)


def _shown(character: str) -> str:
    """The character; of one that is not seen, its number in Unicode."""
    return character if character.isprintable() and not character.isspace() else f"U+{ord(character):04X}"


def _in_full(spelling: str) -> str | None:
    """`.5` is `0.5`, `5.` is `5.0` and `2gb` is `2GB`; None where no plain mistake explains the spelling."""
    if re.fullmatch(r"\.\d+%?", spelling):
        return f"0{spelling}"
    if re.fullmatch(r"\d+\.", spelling):
        return f"{spelling}0"
    return sizes(spelling)


def _unclosed_brace(source: Source, before: int | None = None) -> Span | None:
    """The last brace that is open at the end of the text, or before an offset."""
    open_ = []
    for match in re.finditer(r'"[^"\n]*"|#[^\n]*|[{}]', source.text[:before]):
        if match[0] == "{":
            open_.append(match.start())
        elif match[0] == "}" and open_:
            open_.pop()
    return source.span(open_[-1], open_[-1] + 1) if open_ else None


def _follows_comparison(token: Token, source: Source) -> bool:
    """Whether a comparison stands before `token` within the same condition."""
    condition = re.split(r"\b(?:while|and|or|not)\b|(?<![<>])=|[{}]", source.text[: token.start_pos])[-1]
    return "<" in condition or ">" in condition


def _spelled(accepts: set[str]) -> list[str]:
    plain = [name.strip("_").lower() for name in accepts if name.startswith("_") and name != "_DOTS"]
    return plain + (["step", "chunk", "frame", "token"] if "GRANULARITY" in accepts else [])


def _wanted(accepts: set[str]) -> str:
    """The expected set in words: an expression by one name, operators only where nothing else fits."""
    names = set(accepts) - {"REGION"}  # any word with a colon behind it
    if names >= {"GRANULARITY", "INT"}:  # behind `reuse`, where the name of a choice may stand too
        names.discard("NAME")
    listed: list[str] = []
    if names >= _EXPRESSION:
        names -= _EXPRESSION | {"_NOT", "STRING", "LSQB"}
        listed.append("an expression")
    if names >= _DECLARATIONS:
        names -= _DECLARATIONS | _CHOOSE
        listed.append("a declaration (`param`, `signal`, `phase`, `layers`, ...)")
    if names - _OPERATORS:
        names -= _OPERATORS
    for name in sorted(names, key=lambda name: (not name.startswith("_"), name)):
        listed.append(_KINDS.get(name, words([name.strip("_").lower()])))
    if len(listed) > _MAX_LISTED:
        listed = [*listed[:_MAX_LISTED], "..."]
    return f"{', '.join(listed[:-1])} or {listed[-1]}" if len(listed) > 1 else "".join(listed)
