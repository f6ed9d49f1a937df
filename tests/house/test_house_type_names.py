"""One name, one thing: no public class and no public type alias has a name that another module gives to its own."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from tests.house.tree import modules, read


def defined(tree: ast.Module) -> Iterator[str]:
    """The public classes and type aliases that a module defines."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                pass
            case ast.Assign(targets=[ast.Name(id=name)]):
                pass
            case _:
                continue
        if name[0].isupper() and not name.isupper():
            yield name


def doubles(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """The names that several modules define, each with these modules."""
    found = defaultdict(set)
    for module, tree in trees.items():
        for name in defined(tree):
            found[name].add(module)
    return {name: sorted(where) for name, where in found.items() if len(where) > 1}


def test_no_type_name_lives_in_two_modules() -> None:
    """A name that is only imported counts where it is defined, so the import paths of 0.1.0 are no doubles."""
    assert doubles({name: module.tree for name, module in modules().items()}) == {}


def test_a_double_is_seen() -> None:
    one, two = "class Row: ...\nX = 1\n_Own = int", "Row: TypeAlias = int\nX = 2\n_Own = str"
    texts = {"a": one, "b": two, "c": "Row2 = int"}
    trees = {name: read(name, modules()["mccompile"].path, text).tree for name, text in texts.items()}
    assert doubles(trees) == {"Row": ["a", "b"]}
