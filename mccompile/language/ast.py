"""The policy AST: what was written, with nothing resolved. Equality ignores spans and spellings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mccompile.diagnostics.source import Span
from mccompile.language.written import (
    Argument,
    Arithmetic,
    ArithOp,
    BlockResult,
    Call,
    Compare,
    CompareOp,
    Logic,
    LogicOp,
    Name,
    Negative,
    Not,
    Number,
    NumberList,
    Pipe,
    Ref,
    Text,
    Unit,
    WrittenExpr,
)

__all__ = [
    "Alternative", "Argument", "ArithOp", "Arithmetic", "AtMost", "Bin", "BlockRange", "BlockResult", "BranchesDecl",
    "Call", "ChooseDecl", "ChunkCount", "Comment", "Compare", "CompareOp", "ComputeAllEvery", "ComputeAllSteps",
    "ComputeAllWhen", "ComputeBins", "ComputeEvery", "ComputeRule", "ComputeSteps", "ComputeTop", "Declaration",
    "Extends", "FunctionDecl", "FunctionParameter", "Guard", "HoldWhen", "Item", "LayersDecl", "Logic", "LogicOp",
    "ModelRange", "Name", "NamedRule", "Negative", "Not", "Number", "NumberList", "Option", "OptionsDecl", "ParamDecl",
    "PhaseDecl", "Pipe", "PolicyAst", "Range", "Ref", "ReuseInOrder", "ReuseRule", "SignalDecl", "Size", "StepRange",
    "Text", "TopKeys", "Unit", "UseDecl", "Vote", "When", "WhenForSteps", "WhenLastSteps", "WhenUntilRefreshes",
    "While", "WrittenExpr", "WrittenRule",
]


# ---- phases ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class WhenForSteps:
    n: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class WhenLastSteps:
    n: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class WhenUntilRefreshes:
    n: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class While:
    """`low <= clock < high`, `clock < high` or `clock >= low`: operands and the signs between them."""

    operands: tuple[WrittenExpr, ...]
    ops: tuple[CompareOp, ...]
    span: Span = field(compare=False, repr=False)


When = WhenForSteps | WhenLastSteps | WhenUntilRefreshes | While


@dataclass(frozen=True, slots=True)
class Vote:
    share: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class HoldWhen:
    below: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ComputeAllWhen:
    above: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ComputeAllEvery:
    n: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ComputeAllSteps:
    """`compute all steps 12, 20..22`: no range is open."""

    ranges: tuple[StepRange, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AtMost:
    """A cap on reuse: `n` reuses in a row or in total, or a share of the tokens."""

    n: WrittenExpr
    of: Literal["row", "total", "tokens"]
    span: Span = field(compare=False, repr=False)


Guard = Vote | HoldWhen | ComputeAllWhen | ComputeAllEvery | ComputeAllSteps | AtMost


@dataclass(frozen=True, slots=True)
class ComputeRule:
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ComputeEvery:
    n: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class StepRange:
    """Steps first..last, both included; last=None is an open end."""

    first: Number
    last: Number | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ComputeSteps:
    """`compute steps 0..4, 7, 10.. of 30`."""

    ranges: tuple[StepRange, ...]
    length: Number | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Bin:
    compute: bool
    n: Number
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ComputeBins:
    """`compute 6 reuse 1 compute 2`: a step mask by run lengths."""

    bins: tuple[Bin, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ComputeTop:
    share: WrittenExpr
    by: WrittenExpr
    guards: tuple[Guard, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ReuseRule:
    """`reuse chunk as VALUE while CONDITION`; stand_in=None is what the layers say."""

    granularity: Name
    stand_in: WrittenExpr | None
    condition: WrittenExpr
    guards: tuple[Guard, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ReuseInOrder:
    """Several `reuse ... while`, at least two: the first whose condition holds says what stands in."""

    ways: tuple[ReuseRule, ...]
    span: Span = field(compare=False, repr=False)


WrittenRule = ComputeRule | ComputeEvery | ComputeSteps | ComputeBins | ComputeTop | ReuseRule | ReuseInOrder


# ---- declarations ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Range:
    low: Number
    high: Number
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ParamDecl:
    name: Name
    default: Number
    range: Range | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SignalDecl:
    name: Name
    expr: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NamedRule:
    """`front: compute every 2 steps`, `uncond: RULE`, `uncond.front: RULE`: whose rule it is, and the rule.

    branch=None: of every guidance branch. region=None: of all regions of a branch.
    """

    branch: Name | None
    region: Name | None
    rule: WrittenRule
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PhaseDecl:
    """`when` is None for a phase that holds to the end.

    regions: the rules of named regions. A phase that has some says nothing else: `rule` is then `compute`.
    """

    name: Name
    when: When | None
    rule: WrittenRule
    regions: tuple[NamedRule, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Blocks first..last as written, both included: `[*]` is 0..-1, `[3]` is 3..3, `[8..]` is 8..-1.

    A float is a share of the depth: `[50%..]` is 0.5..-1. part: the sublayer of each of them, `blocks[*].attn`.
    """

    first: int | float
    last: int | float
    part: Name | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ModelRange:
    """`layers model`: all that the model computes."""

    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LayersDecl:
    """`layers front = blocks[0..7] { keep residual  reuse as VALUE }`.

    name=None decides with the other layers without a name. where=None is `integration`, keep=None is `compute`,
    stand_in=None is the kept result itself. each: every block of the range decides apart.
    """

    name: Name | None
    each: bool
    where: BlockRange | ModelRange | None
    keep: Name | None
    stand_in: WrittenExpr | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes as spelled, `2GB`."""

    bytes: int
    spelling: str = field(compare=False, repr=False)
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ChunkCount:
    """`5 chunks`, or a parameter: `reach chunks`."""

    n: Number | Ref
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TopKeys:
    """`top 3 chunks by relevance`: as many keys as so many chunks hold, and what picks them."""

    n: Number | Ref
    by: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Option:
    name: Name
    value: Name | Number | Size | ChunkCount | TopKeys
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class OptionsDecl:
    section: Literal["chunks", "cache"]
    options: tuple[Option, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BranchesDecl:
    share: Name
    batch: Name | None  # the word `batch`
    span: Span = field(compare=False, repr=False)


Declaration = ParamDecl | SignalDecl | PhaseDecl | LayersDecl | OptionsDecl | BranchesDecl


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way of a choice. declarations: what it brings into the policy; none for a word alone."""

    name: Name
    declarations: tuple[Declaration, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ChooseDecl:
    """`choose NAME = token | chunk`: one of the alternatives holds, the first where nobody picks another."""

    name: Name
    alternatives: tuple[Alternative, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FunctionParameter:
    """A parameter of a policy's own function; default=None: it must be given."""

    name: Name
    default: WrittenExpr | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FunctionDecl:
    """`function gate(x, limit = 0.1) = EXPR`: a call stands for the expression with its arguments in it."""

    name: Name
    parameters: tuple[FunctionParameter, ...]
    expr: WrittenExpr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class UseDecl:
    """`use "library.policy"`: the functions of another file."""

    library: Text
    span: Span = field(compare=False, repr=False)


Item = Declaration | ChooseDecl | FunctionDecl | UseDecl


@dataclass(frozen=True, slots=True)
class Extends:
    """The extended policy: a shipped policy's name, or the path of a file beside this one."""

    base: Name | Text
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Comment:
    """A `#` comment; `trailing` if code stands before it on its line."""

    text: str
    trailing: bool = field(compare=False)
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PolicyAst:
    name: Name
    extends: Extends | None
    models: tuple[Name, ...]
    items: tuple[Item, ...]
    comments: tuple[Comment, ...]
    span: Span = field(compare=False, repr=False)
