"""The structure of a call's arguments and results, from JSON: tuples, lists, dicts, and outputs that torch knows.

torch's own reader imports the modules that its text names. So the text is checked before that reader gets it.
"""

from __future__ import annotations

import json

from torch.utils import _pytree as pytree

from mccompile.backend.graph_text import GraphJson

_BUILT_IN = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_OUTPUTS = ("diffusers.", "mccompile.")  # classes of outputs, registered when they were imported
_DEEPEST = 20


def read_spec(text: GraphJson) -> pytree.TreeSpec:
    """What `treespec_dumps` wrote. Raises ValueError for other text."""
    if not isinstance(text, str):
        raise ValueError(f"no structure: {text!r:.100}")
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("no structure: too deep") from error
    match found:
        case [int(), dict(tree)]:
            _check(tree, 0)
        case _:
            raise ValueError(f"no structure: {text:.100}")
    try:
        return pytree.treespec_loads(text)
    except (NotImplementedError, LookupError, TypeError, AssertionError) as error:
        raise ValueError(f"no structure: {error!s:.100}") from error


def _check(tree: GraphJson, depth: int) -> None:
    match tree:
        case {"type": None, "context": None, "children_spec": []}:
            return
        case {"type": str(name), "context": str(context), "children_spec": list(children)} if depth < _DEEPEST:
            known = name in _BUILT_IN or (name.startswith(_OUTPUTS) and name in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE)
            if known and _is_plain(json.loads(context), len(children)):
                for child in children:
                    _check(child, depth + 1)
                return
    raise ValueError(f"no structure: {tree!r:.100}")


def _is_plain(context: GraphJson, children: int) -> bool:
    """One name for each child, or nothing."""
    if context is None:
        return True
    return isinstance(context, list) and all(isinstance(c, str) for c in context) and len(set(context)) == children
