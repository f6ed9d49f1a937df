"""The text form of the policy IR: one declaration a line, `read(show(policy)) == policy`."""

from __future__ import annotations

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.policy.sexpr import Atom, Reader, TreeItem, write, write_fields

_LISTS: dict[str, tuple[str, type]] = {
    "param": ("params", ir.Param),
    "signal": ("signals", ir.Signal),
    "phase": ("phases", ir.Phase),
    "region": ("regions", ir.Region),
}
_SINGLES: dict[str, type] = {"chunks": ir.Chunks, "branches": ir.Branches, "cache": ir.Cache}


def show(policy: ir.PolicyIR) -> str:
    """The policy as text: `policy NAME`, then a line per declaration, in the order of ir.PolicyIR."""
    lines = [f"policy {write(policy.name)}", f"models {write(policy.models)}"]
    declared: tuple[tuple[str, tuple[object, ...]], ...] = (
        ("param", policy.params),
        ("signal", policy.signals),
        ("phase", policy.phases),
        ("region", policy.regions),
        ("chunks", (policy.chunks,)),
        ("branches", (policy.branches,)),
        ("cache", (policy.cache,)),
    )
    for keyword, values in declared:
        lines += [" ".join((keyword, *write_fields(v))) for v in values]
    return "\n".join(lines) + "\n"


def read(text: str) -> ir.PolicyIR:
    """The policy that `show` wrote as `text`; empty lines do not matter.

    Raises PolicyError (MC0308) with the line of the first thing that does not read.
    """
    source = Source.of_text(text, "<policy ir>")
    reader = Reader(source, "a policy IR")
    found: dict[str, list[object]] = {key: [] for key in ("policy", "models", *_LISTS, *_SINGLES)}
    start = 0
    for line in source.text.split("\n"):
        items = reader.items(start, start + len(line))
        if items:
            keyword, value = _declaration(reader, items)
            if found[keyword] and keyword not in _LISTS:
                raise reader.error(items[0].value.span, f"`{keyword}` is given twice")
            found[keyword].append(value)
        start += len(line) + 1
    for keyword, values in found.items():
        if not values and keyword not in _LISTS:
            raise reader.error(source.span(len(source.text), len(source.text)), f"`{keyword}` is missing")
    lists = {field: tuple(found[key]) for key, (field, _) in _LISTS.items()}
    singles = {key: found[key][0] for key in _SINGLES}
    return ir.PolicyIR(name=found["policy"][0], models=found["models"][0], **lists, **singles)  # type: ignore[arg-type]


def _declaration(reader: Reader, items: tuple[TreeItem, ...]) -> tuple[str, object]:
    """One line: its keyword and its value."""
    head, rest = items[0].value, items[1:]
    span = head.span.to(items[-1].value.span)
    if isinstance(head, Atom) and items[0].key is None:
        if head.text in _LISTS:
            return head.text, reader.node(_LISTS[head.text][1], rest, span)
        if head.text in _SINGLES:
            return head.text, reader.node(_SINGLES[head.text], rest, span)
        if head.text in ("policy", "models") and len(rest) == 1:
            hint = str if head.text == "policy" else tuple[str, ...]
            return head.text, reader.value(hint, rest[0].value)
    raise reader.error(span, "not a declaration of a policy IR")
