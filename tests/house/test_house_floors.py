"""Imports go down only, the floors are those of docs/architecture.md, and nothing below the line knows torch."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import networkx as nx
import pytest

from tests.house.tree import ROOT, Module, house, imports, modules, read, standing

PURE = {
    "diagnostics": set(), "resources": set(), "ir": set(), "language": {"lark"}, "policy": {"numpy"},
    "importing": {"yaml"}, "lsp": {"pygls", "lsprotocol", "pygments"},
}  # fmt: skip


def upward(known: dict[str, Module]) -> list[str]:
    """Imports of something that stands higher, with the place of each."""
    height = {name: -index for index, row in enumerate(house()) for name in row.names}
    return [
        f"{module.place}:{found.line}: {standing(module.name)} imports {found.target}"
        for module in known.values()
        for found in imports(module)
        if found.target.split(".")[0] == "mccompile"
        and height.get(standing(module.name), 0) < height.get(standing(found.target), 0)
    ]


def cycles(known: dict[str, Module]) -> list[list[str]]:
    """Groups of modules that import each other when they are loaded, or when they are type-checked."""
    graph = nx.DiGraph()
    for module in known.values():
        for found in imports(module):
            if not found.deferred and found.target in known:
                graph.add_edge(module.name, found.target)
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]


def module(name: str, source: str) -> Module:
    return read(name, ROOT / f"{name.replace('.', '/')}.py", source)


def test_the_list_in_the_docs_is_the_package() -> None:
    listed = [name for row in house() for name in row.names]
    assert sorted(listed) == sorted({standing(name) for name in modules()})
    assert {len(row.names) for row in house()} == {1}
    assert listed[-1] == "resources"
    assert [row.torch for row in house()].count(False) == 9


def test_imports_go_down_only() -> None:
    assert upward(modules()) == []


def test_no_module_imports_itself_in_a_circle() -> None:
    assert cycles(modules()) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("mccompile.policy.wrong", "from mccompile.runtime.clock import Clock"),
        ("mccompile.models.wrong", "from mccompile import generate"),
        ("mccompile.pipelines.wrong", "from mccompile import api"),
        ("mccompile.language.wrong", "def late():\n    import mccompile.policy.bind\n"),
    ],
)
def test_an_upward_import_is_seen(name: str, source: str) -> None:
    wrong = module(name, source)
    assert len(upward({**modules(), name: wrong})) == 1 + len(upward(modules()))


@pytest.mark.parametrize(
    "source",
    [
        "from mccompile.diagnostics import diagnostic",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mccompile.diagnostics import diagnostic\n",
    ],
)
def test_a_circle_is_seen(source: str) -> None:
    wrong = module("mccompile.diagnostics.source", source)
    assert cycles({**modules(), wrong.name: wrong})


def test_a_circle_of_annotations_is_seen() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mccompile.capture import capture\n"
    wrong = module("mccompile.capture.errors", text)
    assert cycles({**modules(), wrong.name: wrong})


@pytest.mark.parametrize("part", sorted(PURE))
def test_below_the_line_only_the_declared_libraries(part: str) -> None:
    allowed = PURE[part] | {"mccompile"} | sys.stdlib_module_names
    wrong = [
        f"{module.place}:{found.line}: {found.target}"
        for module in modules().values()
        if standing(module.name) == part
        for found in imports(module)
        if found.target.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_nothing_below_the_line_loads_torch() -> None:
    below = sorted(n for n in modules() if standing(n) in PURE and not n.endswith("__main__"))
    code = (
        f"import importlib, sys\nfor name in {below!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_library_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {line.replace("-", "_").split(">")[0].split("=")[0].strip() for line in project["dependencies"]}
    named = {"PIL": "pillow", "bs4": "beautifulsoup4", "skimage": "scikit_image", "yaml": "pyyaml"}
    optional = {
        "ray", "torchvision", "zstandard", "pygls", "lsprotocol", "pygments", "starlette", "uvicorn", "triton",
    }  # fmt: skip
    used = {found.target.split(".")[0] for module in modules().values() for found in imports(module)}
    libraries = {named.get(name, name) for name in used - sys.stdlib_module_names - {"mccompile"}}
    assert sorted(libraries - declared - optional) == []
