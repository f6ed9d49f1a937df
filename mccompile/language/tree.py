"""Turns lark's tree into the typed AST. Each grammar rule has a method, which is called with the rule's children."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal, cast

from lark import Token, Transformer, v_args
from lark.tree import Meta

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Source, Span
from mccompile.language import ast
from mccompile.language.builtins import BRANCHES
from mccompile.language.errors.syntax import InvalidNumber

_BYTES = {"K": 1000, "M": 1000**2, "G": 1000**3, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3}

_LayerRule = tuple[ast.Name | None, ast.WrittenExpr | None]  # what is kept, and what stands in for it
_LARGEST = 3.4e38  # of float32, in which all of a policy is computed


class _Words(Transformer[Token, ast.PolicyAst]):
    """What the rules share: places, words and numbers."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.errors: list[Diagnostic] = []

    def _at(self, meta: Meta) -> Span:
        return self.source.span(meta.start_pos, meta.end_pos)

    def _place(self, token: Token) -> Span:
        assert token.start_pos is not None
        assert token.end_pos is not None
        return self.source.span(token.start_pos, token.end_pos)

    def _name(self, token: Token) -> ast.Name:
        return ast.Name(str(token), self._place(token))

    def _text(self, token: Token) -> ast.Text:
        return ast.Text(str(token)[1:-1], self._place(token))

    def _number(self, token: Token) -> ast.Number:
        number = ast.Number(float(token), "", str(token), self._place(token))
        if not -_LARGEST <= number.value <= _LARGEST:
            self.errors.append(InvalidNumber(number.span, str(token), None, "larger than 3.4e38"))
        return number

    def _percent(self, token: Token) -> ast.Number:
        return ast.Number(float(token[:-1]) / 100, "%", str(token), self._place(token))

    def _size(self, token: Token) -> ast.Size:
        match = re.fullmatch(r"([\d.]+)\s*([KMG]i?)B", token)
        assert match is not None
        return ast.Size(round(float(match[1]) * _BYTES[match[2]]), str(token), self._place(token))

    def _quantity(self, meta: Meta, sign: Token | None, token: Token, unit: ast.Unit) -> ast.Number:
        number = self._percent(token) if unit == "%" else self._number(token)
        minus = "" if sign is None else "-"
        value = number.value if sign is None else -number.value
        return ast.Number(value, unit, minus + number.spelling, self._at(meta))


@v_args(inline=True, meta=True)
class _Expressions(_Words):
    def number(self, meta: Meta, token: Token) -> ast.Number:
        return self._number(token)

    def percent(self, meta: Meta, token: Token) -> ast.Number:
        return self._percent(token)

    def ref(self, meta: Meta, token: Token) -> ast.Ref:
        return ast.Ref(str(token), self._at(meta))

    def block(self, meta: Meta, sign: Token | None, number: Token) -> ast.Number:
        return self._quantity(meta, sign, number, "")

    def block_share(self, meta: Meta, share: Token) -> ast.Number:
        return self._percent(share)

    def block_result(self, meta: Meta, block: ast.Number, *words: Token) -> ast.BlockResult:
        return ast.BlockResult(_bound(block), tuple(map(self._name, words)), self._at(meta))

    def text(self, meta: Meta, token: Token) -> ast.Text:
        return self._text(token)

    def group(self, meta: Meta, inner: ast.WrittenExpr) -> ast.WrittenExpr:
        return inner

    def number_list(self, meta: Meta, *items: ast.Number | None) -> ast.NumberList:
        return ast.NumberList(tuple(item for item in items if item is not None), self._at(meta))

    def argument(self, meta: Meta, name: Token | None, value: ast.WrittenExpr) -> ast.Argument:
        return ast.Argument(None if name is None else self._name(name), value, self._at(meta))

    def call(self, meta: Meta, function: Token, *arguments: ast.Argument | None) -> ast.Call:
        given = tuple(argument for argument in arguments if argument is not None)
        return ast.Call(self._name(function), given, self._at(meta))

    def piped(self, meta: Meta, value: ast.WrittenExpr, call: ast.Call) -> ast.Pipe:
        return ast.Pipe(value, call, self._at(meta))

    def negative(self, meta: Meta, sign: Token, of: ast.WrittenExpr) -> ast.Negative:
        return ast.Negative(of, self._at(meta))

    def logic_not(self, meta: Meta, of: ast.WrittenExpr) -> ast.Not:
        return ast.Not(of, self._at(meta))

    def arithmetic(self, meta: Meta, left: ast.WrittenExpr, op: Token, right: ast.WrittenExpr) -> ast.Arithmetic:
        return ast.Arithmetic(cast("ast.ArithOp", str(op)), left, right, self._at(meta))

    def compare_op(self, meta: Meta, op: Token) -> ast.CompareOp:
        return cast("ast.CompareOp", str(op))

    def compare(self, meta: Meta, left: ast.WrittenExpr, op: ast.CompareOp, right: ast.WrittenExpr) -> ast.Compare:
        return ast.Compare(op, left, right, self._at(meta))

    def either(self, meta: Meta, left: ast.WrittenExpr, right: ast.WrittenExpr) -> ast.Logic:
        return ast.Logic("or", left, right, self._at(meta))

    def both(self, meta: Meta, left: ast.WrittenExpr, right: ast.WrittenExpr) -> ast.Logic:
        return ast.Logic("and", left, right, self._at(meta))


@v_args(inline=True, meta=True)
class _Phases(_Expressions):
    def for_steps(self, meta: Meta, n: ast.WrittenExpr) -> ast.WhenForSteps:
        return ast.WhenForSteps(n, self._at(meta))

    def last_steps(self, meta: Meta, n: ast.WrittenExpr) -> ast.WhenLastSteps:
        return ast.WhenLastSteps(n, self._at(meta))

    def until_refreshes(self, meta: Meta, n: ast.WrittenExpr) -> ast.WhenUntilRefreshes:
        return ast.WhenUntilRefreshes(n, self._at(meta))

    def while_clock(
        self,
        meta: Meta,
        left: ast.WrittenExpr,
        op: ast.CompareOp,
        middle: ast.WrittenExpr,
        op_right: ast.CompareOp | None,
        right: ast.WrittenExpr | None,
    ) -> ast.While:
        if op_right is None or right is None:
            return ast.While((left, middle), (op,), self._at(meta))
        return ast.While((left, middle, right), (op, op_right), self._at(meta))

    def compute(self, meta: Meta) -> ast.ComputeRule:
        return ast.ComputeRule(self._at(meta))

    def compute_every(self, meta: Meta, n: ast.WrittenExpr) -> ast.ComputeEvery:
        return ast.ComputeEvery(n, self._at(meta))

    def one_step(self, meta: Meta, step: Token) -> ast.StepRange:
        return ast.StepRange(self._number(step), self._number(step), self._at(meta))

    def steps_from(self, meta: Meta, first: Token) -> ast.StepRange:
        return ast.StepRange(self._number(first), None, self._at(meta))

    def steps_between(self, meta: Meta, first: Token, last: Token) -> ast.StepRange:
        return ast.StepRange(self._number(first), self._number(last), self._at(meta))

    def compute_steps(self, meta: Meta, *parts: ast.StepRange | Token | None) -> ast.ComputeSteps:
        ranges = tuple(part for part in parts if isinstance(part, ast.StepRange))
        length = parts[-1]
        n = self._number(length) if isinstance(length, Token) else None
        return ast.ComputeSteps(ranges, n, self._at(meta))

    def bin_compute(self, meta: Meta, n: Token) -> ast.Bin:
        return ast.Bin(True, self._number(n), self._at(meta))

    def bin_reuse(self, meta: Meta, n: Token) -> ast.Bin:
        return ast.Bin(False, self._number(n), self._at(meta))

    def compute_bins(self, meta: Meta, *bins: ast.Bin) -> ast.ComputeBins:
        return ast.ComputeBins(bins, self._at(meta))

    def compute_top(
        self, meta: Meta, share: ast.WrittenExpr, by: ast.WrittenExpr, *guards: ast.Guard
    ) -> ast.ComputeTop:
        return ast.ComputeTop(share, by, guards, self._at(meta))

    def reuse(
        self, meta: Meta, granularity: Token, stand_in: ast.WrittenExpr | None, condition: ast.WrittenExpr,
        *guards: ast.Guard,
    ) -> ast.ReuseRule:  # fmt: skip
        return ast.ReuseRule(self._name(granularity), stand_in, condition, guards, self._at(meta))

    def reuse_in_order(self, meta: Meta, *ways: ast.ReuseRule) -> ast.ReuseInOrder:
        return ast.ReuseInOrder(ways, self._at(meta))

    def vote(self, meta: Meta, share: ast.WrittenExpr) -> ast.Vote:
        return ast.Vote(share, self._at(meta))

    def hold_when(self, meta: Meta, sign: Token, below: ast.WrittenExpr) -> ast.HoldWhen:
        return ast.HoldWhen(below, self._at(meta))

    def compute_all_when(self, meta: Meta, sign: Token, above: ast.WrittenExpr) -> ast.ComputeAllWhen:
        return ast.ComputeAllWhen(above, self._at(meta))

    def compute_all_every(self, meta: Meta, n: ast.WrittenExpr) -> ast.ComputeAllEvery:
        return ast.ComputeAllEvery(n, self._at(meta))

    def compute_all_steps(self, meta: Meta, *ranges: ast.StepRange) -> ast.ComputeAllSteps:
        return ast.ComputeAllSteps(ranges, self._at(meta))

    def _at_most(self, meta: Meta, n: ast.WrittenExpr, of: Literal["row", "total", "tokens"]) -> ast.AtMost:
        return ast.AtMost(n, of, self._at(meta))

    def at_most_in_a_row(self, meta: Meta, n: ast.WrittenExpr) -> ast.AtMost:
        return self._at_most(meta, n, "row")

    def at_most_in_total(self, meta: Meta, n: ast.WrittenExpr) -> ast.AtMost:
        return self._at_most(meta, n, "total")

    def at_most_of_tokens(self, meta: Meta, n: ast.WrittenExpr) -> ast.AtMost:
        return self._at_most(meta, n, "tokens")


def _bound(block: ast.Number) -> int | float:
    return block.value if block.unit == "%" else int(block.value)


@v_args(inline=True, meta=True)
class AstBuilder(_Phases):
    """Builds the AST of one source; used once. `errors`: numbers that are none."""

    def plain_quantity(self, meta: Meta, sign: Token | None, token: Token) -> ast.Number:
        return self._quantity(meta, sign, token, "")

    def steps_quantity(self, meta: Meta, sign: Token | None, token: Token) -> ast.Number:
        return self._quantity(meta, sign, token, "steps")

    def frames_quantity(self, meta: Meta, sign: Token | None, token: Token) -> ast.Number:
        return self._quantity(meta, sign, token, "frames")

    def share_quantity(self, meta: Meta, sign: Token | None, token: Token) -> ast.Number:
        return self._quantity(meta, sign, token, "%")

    def range(self, meta: Meta, low: ast.Number, high: ast.Number) -> ast.Range:
        return ast.Range(low, high, self._at(meta))

    def param(
        self, meta: Meta, name: Token, default: ast.Number, range_: ast.Range | None
    ) -> ast.ParamDecl:
        return ast.ParamDecl(self._name(name), default, range_, self._at(meta))

    def signal(self, meta: Meta, name: Token, expr: ast.WrittenExpr) -> ast.SignalDecl:
        return ast.SignalDecl(self._name(name), expr, self._at(meta))

    def function_parameter(self, meta: Meta, name: Token, default: ast.WrittenExpr | None) -> ast.FunctionParameter:
        return ast.FunctionParameter(self._name(name), default, self._at(meta))

    def function(self, meta: Meta, name: Token, *parts: ast.FunctionParameter | ast.WrittenExpr) -> ast.FunctionDecl:
        parameters = tuple(part for part in parts if isinstance(part, ast.FunctionParameter))
        return ast.FunctionDecl(self._name(name), parameters, cast("ast.WrittenExpr", parts[-1]), self._at(meta))

    def use(self, meta: Meta, library: Token) -> ast.UseDecl:
        return ast.UseDecl(self._text(library), self._at(meta))

    def alternative(self, meta: Meta, name: Token, *declarations: ast.Declaration | None) -> ast.Alternative:
        given = tuple(one for one in declarations if one is not None)
        return ast.Alternative(self._name(name), given, self._at(meta))

    def choose(self, meta: Meta, name: Token, *alternatives: ast.Alternative) -> ast.ChooseDecl:
        return ast.ChooseDecl(self._name(name), alternatives, self._at(meta))

    def region_rule(self, meta: Meta, region: Token, rule: ast.WrittenRule) -> ast.NamedRule:
        *before, last = str(region).split(".")
        assert region.start_pos is not None
        branch = ast.Name(before[0], self._from(region.start_pos, before[0])) if before else None
        name = ast.Name(last, self._from(region.start_pos + len(str(region)) - len(last), last))
        if branch is None and last in BRANCHES:
            return ast.NamedRule(name, None, rule, self._at(meta))
        return ast.NamedRule(branch, name, rule, self._at(meta))

    def _from(self, start: int, text: str) -> Span:
        return self.source.span(start, start + len(text))

    def phase(
        self, meta: Meta, name: Token, when: ast.When | None, *rules: ast.WrittenRule | ast.NamedRule
    ) -> ast.PhaseDecl:
        regions = tuple(rule for rule in rules if isinstance(rule, ast.NamedRule))
        whole = next((rule for rule in rules if not isinstance(rule, ast.NamedRule)), None)
        at = self._at(meta)
        return ast.PhaseDecl(self._name(name), when, whole or ast.ComputeRule(at), regions, at)

    def all_blocks(self, meta: Meta, star: Token) -> ast.BlockRange:
        return ast.BlockRange(0, -1, None, self._at(meta))

    def one_block(self, meta: Meta, block: ast.Number) -> ast.BlockRange:
        return ast.BlockRange(int(block.value), int(block.value), None, self._at(meta))

    def blocks_from(self, meta: Meta, first: ast.Number) -> ast.BlockRange:
        return ast.BlockRange(_bound(first), -1, None, self._at(meta))

    def blocks_to(self, meta: Meta, last: ast.Number) -> ast.BlockRange:
        return ast.BlockRange(0, _bound(last), None, self._at(meta))

    def blocks_between(self, meta: Meta, first: ast.Number, last: ast.Number) -> ast.BlockRange:
        return ast.BlockRange(_bound(first), _bound(last), None, self._at(meta))

    def keep(self, meta: Meta, name: Token, stand_in: ast.WrittenExpr | None) -> _LayerRule:
        return self._name(name), stand_in

    def no_keep(self, meta: Meta) -> _LayerRule:
        return None, None

    def blocks(self, meta: Meta, where: ast.BlockRange, part: Token | None) -> ast.BlockRange:
        return where if part is None else replace(where, part=self._name(part))

    def whole_model(self, meta: Meta) -> ast.ModelRange:
        return ast.ModelRange(self._at(meta))

    def layers(
        self, meta: Meta, name: Token | None, each: Token | None, where: ast.BlockRange | ast.ModelRange,
        rule: _LayerRule,
    ) -> ast.LayersDecl:  # fmt: skip
        called = None if name is None else self._name(name)
        return ast.LayersDecl(called, each is not None, where, *rule, self._at(meta))

    def integration(self, meta: Meta, rule: _LayerRule) -> ast.LayersDecl:
        return ast.LayersDecl(None, False, None, *rule, self._at(meta))

    def option(self, meta: Meta, name: Token, value: Token) -> ast.Option:
        read: ast.Name | ast.Number | ast.Size
        match value.type:
            case "NAME":
                read = self._name(value)
            case "NUMBER":
                read = self._number(value)
            case _:
                read = self._size(value)
        return ast.Option(self._name(name), read, self._at(meta))

    def chunks_option(self, meta: Meta, name: Token, value: Token) -> ast.Option:
        counted = ast.ChunkCount(self._counted(value), self.source.span(self._place(value).start, meta.end_pos))
        return ast.Option(self._name(name), counted, self._at(meta))

    def keys_option(self, meta: Meta, name: Token, value: Token, by: ast.WrittenExpr) -> ast.Option:
        top = ast.TopKeys(self._counted(value), by, self.source.span(self._place(value).start, meta.end_pos))
        return ast.Option(self._name(name), top, self._at(meta))

    def _counted(self, value: Token) -> ast.Number | ast.Ref:
        return self._number(value) if value.type == "NUMBER" else ast.Ref(str(value), self._place(value))

    def chunks(self, meta: Meta, *options: ast.Option) -> ast.OptionsDecl:
        return ast.OptionsDecl("chunks", options, self._at(meta))

    def cache(self, meta: Meta, *options: ast.Option) -> ast.OptionsDecl:
        return ast.OptionsDecl("cache", options, self._at(meta))

    def branches(self, meta: Meta, share: Token, batch: Token | None) -> ast.BranchesDecl:
        return ast.BranchesDecl(self._name(share), None if batch is None else self._name(batch), self._at(meta))

    def extends(self, meta: Meta, base: Token) -> ast.Extends:
        word = self._name(base) if base.type == "NAME" else self._text(base)
        return ast.Extends(word, self._at(meta))

    def models(self, meta: Meta, *names: Token) -> tuple[ast.Name, ...]:
        return tuple(self._name(name) for name in names)

    def policy(
        self,
        meta: Meta,
        name: Token,
        extends: ast.Extends | None,
        models: tuple[ast.Name, ...] | None,
        *items: ast.Item,
    ) -> ast.PolicyAst:
        return ast.PolicyAst(self._name(name), extends, models or (), items, (), self._at(meta))

    def start(self, meta: Meta, policy: ast.PolicyAst) -> ast.PolicyAst:
        return policy
