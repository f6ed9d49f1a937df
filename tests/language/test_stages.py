"""Golden text of the stages AST and IR, and that the language can say all that the IR can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest

from mccompile import ir
from mccompile.arithmetic.operations import Operator
from mccompile.diagnostics.source import Source
from mccompile.language.fmt import format_policy
from mccompile.language.load import find_policy, load_policy
from mccompile.language.parse import parse
from mccompile.language.show import show_ast
from mccompile.language.types import source_words
from mccompile.policy.text import read, show
from mccompile.resources import shipped_policies

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = sorted((GOLDEN / "ast").glob("*.policy"))
ALL: dict[str, str | Path] = {path.stem: path for path in CASES} | {name: name for name in shipped_policies()}

Golden = Callable[[Path, str], None]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_ast(path: Path, golden: Golden) -> None:
    golden(path.with_suffix(".ast"), show_ast(parse(find_policy(path))))


@pytest.mark.parametrize("name", ALL)
def test_ir(name: str, golden: Golden) -> None:
    policy = load_policy(ALL[name])
    text = show(policy)
    golden(GOLDEN / "ir" / f"{name}.ir", text)
    assert read(text) == policy


def test_no_golden_is_orphaned() -> None:
    assert {path.stem for path in (GOLDEN / "ast").glob("*.ast")} == {path.stem for path in CASES}
    assert {path.stem for path in (GOLDEN / "ir").glob("*.ir")} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_a_formatted_policy_has_the_same_ir(name: str) -> None:
    source = find_policy(ALL[name])
    again = Source("formatted", format_policy(parse(source)), source.path)
    assert load_policy(again) == load_policy(source)


def _placed(value: object) -> Iterator[ir.Node]:
    return (node for node in _nodes(value) if isinstance(node, ir.Node))


@pytest.mark.parametrize("name", shipped_policies())
def test_every_node_of_the_ir_points_at_words_of_a_policy(name: str) -> None:
    policy = load_policy(name)
    # What the language leaves out has no words: the defaults of a section, of an option, of a missing bound.
    unsaid = (policy.chunks, policy.branches, policy.cache, ir.Const(0.0), ir.Const(1.0), ir.Const(1e6))
    for node in _placed(policy):
        assert node.at is not None or node in unsaid, node
    for source in (node for node in _placed(policy) if isinstance(node, ir.SourceRef)):
        assert source.at is not None
        assert source.at.text == source_words(source)


@pytest.mark.parametrize("name", shipped_policies())
def test_places_are_no_part_of_the_meaning(name: str) -> None:
    policy = load_policy(name)
    again = read(show(policy))
    assert all(node.at is None for node in _placed(again))
    assert (again, hash(again), show(again)) == (policy, hash(policy), show(policy))


def _nodes(value: object) -> Iterator[object]:
    if is_dataclass(value):
        yield value
        for field in (field for field in fields(value) if field.compare):
            yield from _nodes(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _nodes(item)
    else:
        yield value


def test_the_language_says_all_that_the_ir_can() -> None:
    said = [node for what in ALL.values() for node in _nodes(load_policy(what))]
    kinds = {type(node) for node in said}
    declared = {thing for thing in vars(ir).values() if isinstance(thing, type) and issubclass(thing, ir.Node)}
    assert declared - {ir.Node} <= kinds
    plain = {node for node in said if isinstance(node, str)}
    for words in (ir.SourceName, ir.Distance, Operator, ir.Norm, ir.Reduction):
        assert set(get_args(words)) <= plain
    assert set(ir.Granularity) <= {node for node in said if isinstance(node, ir.Granularity)}
    guards = [node for node in said if isinstance(node, ir.Reuse)]
    for field in fields(ir.Reuse):
        assert any(getattr(reuse, field.name) is not None for reuse in guards), field.name
    for one in (ir.Chunks, ir.Cache, ir.Region):
        nodes = [node for node in said if isinstance(node, one)]
        for field in (field for field in fields(one) if field.compare and field.name != "depth"):  # known in a model
            assert len({getattr(node, field.name) for node in nodes}) > 1, field.name
