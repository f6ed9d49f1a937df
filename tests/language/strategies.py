"""Hypothesis strategies for policy ASTs: all that the grammar can say, meaningful or not."""

from __future__ import annotations

from typing import Literal

from hypothesis import strategies as st

from mccompile.diagnostics.source import Source
from mccompile.language import ast

SPAN = Source.of_text("").span(0, 0)
WORDS = ("alpha", "motion", "drift2", "b_c", "step", "fraction", "rel_l1", "a", "R")

words = st.sampled_from(WORDS)
names = words.map(lambda word: ast.Name(word, SPAN))
plain_spellings = st.one_of(
    st.integers(0, 999).map(str),
    st.tuples(st.integers(0, 99), st.integers(0, 999)).map(lambda pair: f"{pair[0]}.{pair[1]}"),
    st.tuples(st.integers(1, 9), st.integers(-9, 9)).map(lambda pair: f"{pair[0]}e{pair[1]}"),
)


def _number(spelling: str, unit: ast.Unit) -> ast.Number:
    value = float(spelling) / 100 if unit == "%" else float(spelling)
    return ast.Number(value, unit, spelling + ("%" if unit == "%" else ""), SPAN)


counts = st.integers(0, 99).map(lambda n: _number(str(n), ""))
percents = st.one_of(st.integers(0, 150).map(str), st.just("12.5")).map(lambda text: _number(text, "%"))
plain_numbers = plain_spellings.map(lambda text: _number(text, ""))


@st.composite
def quantities(draw: st.DrawFn) -> ast.Number:
    unit: ast.Unit = draw(st.sampled_from(("", "%", "steps", "frames")))
    found = draw(percents) if unit == "%" else _number(draw(plain_spellings), unit)
    if draw(st.booleans()):
        return ast.Number(-found.value, found.unit, f"-{found.spelling}", SPAN)
    return found


number_lists = st.lists(quantities(), max_size=4).map(lambda items: ast.NumberList(tuple(items), SPAN))
texts = st.sampled_from(("flux", "a b", "../x.policy", "# no comment")).map(lambda text: ast.Text(text, SPAN))
refs = words.map(lambda word: ast.Ref(word, SPAN))


def _calls(inner: st.SearchStrategy[ast.WrittenExpr]) -> st.SearchStrategy[ast.Call]:
    values = st.one_of(inner, number_lists, texts)
    arguments = st.builds(ast.Argument, st.none() | names, values, st.just(SPAN))
    return st.builds(ast.Call, names, st.lists(arguments, max_size=3).map(tuple), st.just(SPAN))


def _larger(inner: st.SearchStrategy[ast.WrittenExpr]) -> st.SearchStrategy[ast.WrittenExpr]:
    at = st.just(SPAN)
    return st.one_of(
        _calls(inner),
        st.builds(ast.Pipe, inner, _calls(inner), at),
        st.builds(ast.Negative, inner, at),
        st.builds(ast.Not, inner, at),
        st.builds(ast.Arithmetic, st.sampled_from("+-*/^"), inner, inner, at),
        st.builds(ast.Compare, st.sampled_from(("<", "<=", ">", ">=")), inner, inner, at),
        st.builds(ast.Logic, st.sampled_from(("and", "or")), inner, inner, at),
    )


exprs: st.SearchStrategy[ast.WrittenExpr] = st.recursive(
    st.one_of(plain_numbers, percents, refs), _larger, max_leaves=6
)


@st.composite
def clock_ranges(draw: st.DrawFn) -> ast.While:
    n = draw(st.integers(1, 2))
    operands = tuple(draw(exprs) for _ in range(n + 1))
    ops = tuple(draw(st.sampled_from(("<", "<=", ">", ">="))) for _ in range(n))
    return ast.While(operands, ops, SPAN)


whens = st.one_of(
    st.none(),
    st.builds(ast.WhenForSteps, exprs, st.just(SPAN)),
    st.builds(ast.WhenLastSteps, exprs, st.just(SPAN)),
    st.builds(ast.WhenUntilRefreshes, exprs, st.just(SPAN)),
    clock_ranges(),
)
caps: tuple[Literal["row", "total", "tokens"], ...] = ("row", "total", "tokens")
closed_ranges = st.builds(ast.StepRange, counts, counts, st.just(SPAN))
guards = st.one_of(
    st.builds(ast.Vote, exprs, st.just(SPAN)),
    st.builds(ast.HoldWhen, exprs, st.just(SPAN)),
    st.builds(ast.ComputeAllWhen, exprs, st.just(SPAN)),
    st.builds(ast.ComputeAllEvery, exprs, st.just(SPAN)),
    st.builds(ast.ComputeAllSteps, st.lists(closed_ranges, min_size=1, max_size=3).map(tuple), st.just(SPAN)),
    st.builds(ast.AtMost, exprs, st.sampled_from(caps), st.just(SPAN)),
)
granularities = st.sampled_from(("step", "chunk", "frame", "token")).map(lambda word: ast.Name(word, SPAN))
step_ranges = st.builds(ast.StepRange, counts, st.none() | counts, st.just(SPAN))
reuses = st.builds(
    ast.ReuseRule, granularities, st.none() | exprs, exprs, st.lists(guards, max_size=3).map(tuple), st.just(SPAN)
)
bins = st.builds(ast.Bin, st.booleans(), counts, st.just(SPAN))
rules = st.one_of(
    st.just(ast.ComputeRule(SPAN)),
    st.builds(ast.ComputeEvery, exprs, st.just(SPAN)),
    st.builds(
        ast.ComputeSteps,
        st.lists(step_ranges, min_size=1, max_size=4).map(tuple),
        st.none() | counts,
        st.just(SPAN),
    ),
    st.builds(ast.ComputeBins, st.lists(bins, min_size=1, max_size=4).map(tuple), st.just(SPAN)),
    st.builds(ast.ComputeTop, exprs, exprs, st.lists(guards, max_size=2).map(tuple), st.just(SPAN)),
    reuses,
    st.builds(ast.ReuseInOrder, st.lists(reuses, min_size=2, max_size=3).map(tuple), st.just(SPAN)),
)
branches = st.sampled_from(("cond", "uncond")).map(lambda word: ast.Name(word, SPAN))
named_rules = st.one_of(
    st.builds(ast.NamedRule, st.none() | branches, names, rules, st.just(SPAN)),
    st.builds(ast.NamedRule, branches, st.none(), rules, st.just(SPAN)),
)
region_rules = st.lists(named_rules, min_size=1, max_size=3).map(tuple)
blocks = st.integers(-9, 9)
bounds = st.one_of(blocks, st.sampled_from((0.25, 0.5, 0.755)))
block_ranges = st.builds(ast.BlockRange, bounds, bounds, st.none() | names, st.just(SPAN))
keeps = st.one_of(st.just((None, None)), st.tuples(names, st.none() | exprs))
sizes = st.sampled_from((ast.Size(2 * 10**9, "2GB", SPAN), ast.Size(512 * 2**20, "512MiB", SPAN)))
chunk_counts = st.builds(ast.ChunkCount, st.one_of(refs, plain_numbers), st.just(SPAN))
top_keys = st.builds(ast.TopKeys, st.one_of(refs, plain_numbers), exprs, st.just(SPAN))
option_values = st.one_of(names, plain_numbers, sizes, chunk_counts, top_keys)
options = st.lists(st.builds(ast.Option, names, option_values, st.just(SPAN)), max_size=4).map(tuple)
declarations = st.one_of(
    st.builds(
        ast.ParamDecl,
        names,
        quantities(),
        st.none() | st.builds(ast.Range, quantities(), quantities(), st.just(SPAN)),
        st.just(SPAN),
    ),
    st.builds(ast.SignalDecl, names, exprs, st.just(SPAN)),
    st.builds(ast.PhaseDecl, names, whens, rules, st.just(()), st.just(SPAN)),
    st.builds(ast.PhaseDecl, names, whens, st.just(ast.ComputeRule(SPAN)), region_rules, st.just(SPAN)),
    st.builds(lambda keep: ast.LayersDecl(None, False, None, *keep, SPAN), keeps),
    st.builds(
        lambda name, each, at, keep: ast.LayersDecl(name, each, at, *keep, SPAN), st.none() | names, st.booleans(),
        block_ranges, keeps,
    ),
    st.builds(ast.OptionsDecl, st.sampled_from(("chunks", "cache")), options, st.just(SPAN)),
    st.builds(ast.BranchesDecl, names, st.none() | names, st.just(SPAN)),
)
alternatives = st.builds(
    ast.Alternative, st.one_of(names, granularities), st.lists(declarations, max_size=3).map(tuple), st.just(SPAN)
)
choices = st.builds(ast.ChooseDecl, names, st.lists(alternatives, min_size=1, max_size=3).map(tuple), st.just(SPAN))
function_parameters = st.builds(
    ast.FunctionParameter, names, st.none() | st.one_of(exprs, number_lists, texts), st.just(SPAN)
)
functions = st.builds(
    ast.FunctionDecl, names, st.lists(function_parameters, min_size=1, max_size=3).map(tuple), exprs, st.just(SPAN)
)
uses = st.builds(ast.UseDecl, texts, st.just(SPAN))
items = st.one_of(declarations, choices, functions, uses)
policies = st.builds(
    ast.PolicyAst,
    names,
    st.none() | st.builds(ast.Extends, st.one_of(names, texts), st.just(SPAN)),
    st.lists(names, max_size=2).map(tuple),
    st.lists(items, max_size=6).map(tuple),
    st.just(()),
    st.just(SPAN),
)
