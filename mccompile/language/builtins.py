"""The predefined words of expressions: sources, clock values, and functions with their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mccompile import ir
from mccompile.arithmetic.operations import OPERATIONS

BRANCHES = ("cond", "uncond")
"""The guidance branches, as diffusers names them."""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A tensor of the model. `per_token`: it has a token axis. `late`: known only after the blocks have run."""

    name: ir.SourceName
    per_token: bool
    late: bool


SOURCES: dict[str, SourceFacts] = {
    source.name: source
    for source in (
        SourceFacts("time_embedding", per_token=False, late=False),
        SourceFacts("modulation", per_token=False, late=False),
        SourceFacts("latent", per_token=True, late=False),
        SourceFacts("embedded", per_token=True, late=False),
        SourceFacts("modulated_input", per_token=True, late=False),
        SourceFacts("input", per_token=True, late=False),
        SourceFacts("block_output", per_token=True, late=True),
        SourceFacts("probe", per_token=True, late=False),
        SourceFacts("probe_output", per_token=True, late=False),
        SourceFacts("output", per_token=True, late=False),
    )
}

ArgumentKind = Literal[
    "source", "past", "number", "share", "count", "name", "word", "flag", "result", "polynomial", "table", "gain",
    "index", "list", "mask",
]  # fmt: skip
NAMED: frozenset[ArgumentKind] = frozenset({"polynomial", "table", "mask"})
"""Arguments that the name of a set may be."""
LISTED: frozenset[ArgumentKind] = frozenset({"polynomial", "table", "list"})
"""Arguments that a list of numbers may be."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a function. `words`: what a word may be; `default`: its spelling, None if required."""

    name: str
    kind: ArgumentKind
    default: str | None = None
    words: tuple[str, ...] = ()
    most: int = 8  # of a count: what is kept costs memory


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    parameters: tuple[Parameter, ...]
    duty: str

    def signature(self) -> str:
        written = (p.name if p.default is None else f"{p.name} = {p.default}" for p in self.parameters)
        return f"{self.name}({', '.join(written)})"


_OF = Parameter("of", "number")
_SOURCE = Parameter("of", "source")
_CHANGE = (
    _SOURCE,
    Parameter("then", "past", "before(of)"),
    Parameter("over", "word", "chunk", ("step", "chunk", "frame", "token")),
)
_KEY = Parameter("key", "word", None, ("key",))
_TO = Parameter("to", "word", None, ("step", "chunk", "frame"))

DISTANCES: dict[str, ir.Distance] = {"rel_l1": "rel_l1", "l1": "l1", "l2": "l2", "cosine": "cosine"}
REDUCTIONS: dict[str, ir.Reduction] = {"mean": "mean", "largest": "max", "smallest": "min"}


def _of_operations() -> Iterator[Function]:
    """The functions that are one operation each."""
    for name, operation in OPERATIONS.items():
        if operation.duty:
            yield Function(name, tuple(Parameter(of, "number") for of in operation.operands), operation.duty)


FUNCTIONS = {
    function.name: function
    for function in (
        Function("rel_l1", _CHANGE, "mean|a - b| / mean|b|, a now and b at an earlier step"),
        Function("l1", _CHANGE, "mean|a - b|"),
        Function("l2", _CHANGE, "root of the mean of (a - b)^2"),
        Function("cosine", _CHANGE, "1 - cosine of the angle between a and b"),
        Function(
            "magnitude",
            (
                _SOURCE,
                Parameter("by", "word", "l1", ("l1", "l2")),
                Parameter("over", "word", "chunk", ("step", "chunk", "frame", "token")),
            ),
            "how large a tensor is: mean|a|, or the root of the mean of a^2 by l2",
        ),
        Function(
            "deviation",
            (_SOURCE, Parameter("over", "word", "chunk", ("step", "chunk", "frame", "token"))),
            "how unlike its own numbers are: the root of the mean of (x - mean x)^2",
        ),
        Function(
            "filter",
            (_SOURCE, Parameter("gain", "gain")),
            "the tensor, each `frequency` of its frames, rows and columns multiplied by a gain",
        ),
        Function(
            "frame_diff",
            (_SOURCE, Parameter("relative", "flag", "yes")),
            "motion: how far a token differs from the same place one frame earlier",
        ),
        Function(
            "similarity",
            (_SOURCE, Parameter("stride", "count", "2")),
            "how like a token is to the most similar anchor of its chunk: the cosine between both",
        ),
        Function(
            "normalise", (_OF, Parameter("by", "word", None, ("mean", "max"))), "divided by the frame's mean or max"
        ),
        Function(
            "min_max",
            (_OF, Parameter("floor", "share", "0%"), Parameter("power", "number", "1")),
            "floor + (1 - floor) * ((x - min) / (max - min)) ^ power, per frame",
        ),
        Function(
            "polynomial",
            (_OF, Parameter("coefficients", "polynomial")),
            "a polynomial, highest power first or by the name of a fitted one",
        ),
        Function(
            "table",
            (Parameter("values", "table"), Parameter("at", "index", "step")),
            "the entry of the chunk's own step, or the one nearest to another number",
        ),
        Function(
            "pick",
            (_OF, Parameter("limits", "list"), Parameter("values", "list")),
            "a step function: the first value below the first limit, the last one from the last limit on",
        ),
        Function(
            "accumulate",
            (_OF, Parameter("into", "name", "account")),
            "the sum over the steps since the cell was last computed",
        ),
        Function(
            "kept",
            (_OF, Parameter("n", "count", "1")),
            "the value when the cell was last computed, or the n-th last time",
        ),
        Function("before", (_OF,), "the value one step ago"),
        Function(
            "average",
            (_OF, Parameter("over", "count")),
            "the mean over the chunk's last steps, this one included",
        ),
        Function(
            "smooth",
            (_OF, Parameter("by", "share")),
            "smoothed over the steps: this share of what it was, and the rest of what it is",
        ),
        Function("dilate", (_OF, Parameter("by", "count", "1")), "the largest around each token of a frame or key"),
        Function("blur", (_OF, Parameter("by", "count", "1")), "the mean around each token of a frame"),
        Function(
            "roi",
            (Parameter("rows", "list"), Parameter("columns", "list")),
            "1 in a rectangle of the frame, 0 elsewhere",
        ),
        Function("mask", (Parameter("drawn", "mask"),), "1 where a mask is drawn in a file, 0 elsewhere"),
        Function(
            "cumulative",
            (_OF, Parameter("by", "word", None, ("sum", "product"))),
            "the sum or product over the chunk's own steps so far",
        ),
        Function(
            "taylor",
            (
                Parameter("of", "result"),
                Parameter("order", "count", "1"),
                Parameter("along", "word", "step", ("step", "timestep", "sigma")),
            ),
            "what a kept result has become, by its last differences",
        ),
        Function(
            "chebyshev",
            (
                Parameter("of", "result"),
                Parameter("degree", "count", "4"),
                Parameter("ridge", "number", "0.1"),
                Parameter("over", "count", "8", most=16),
            ),
            "what a kept result has become, by a series fitted to the last ones",
        ),
        Function(
            "nearest",
            (Parameter("of", "result"), Parameter("by", "source")),
            "what the most similar computed token of the chunk gets in this step",
        ),
        *(
            Function(
                f"{part}_pass", (Parameter("of", "result"), Parameter("radius", "share", "20%")),
                f"the {part} frequencies of what is kept of the whole model",
            )
            for part in ("low", "high")
        ),
        Function("attention", (_KEY,), "how much the last frame of the reading chunk attends to a key of older chunks"),
        Function("redundancy", (_KEY,), "how like a key of older chunks is to the other ones of its attention head"),
        Function("mean", (_OF, _TO), "the mean over each step, chunk or frame"),
        Function("largest", (_OF, _TO), "the largest over each step, chunk or frame"),
        Function("smallest", (_OF, _TO), "the smallest over each step, chunk or frame"),
        *_of_operations(),
        Function("clamp", (_OF, Parameter("low", "number"), Parameter("high", "number")), "held within low and high"),
    )
}

CLOCKS: dict[str, ir.ClockName] = {"step": "step", "fraction": "fraction", "timestep": "timestep", "sigma": "sigma"}
FREQUENCY = "frequency"  # has a value within the gain of a filter only
DEPTH = "depth"  # has a value in rules of blocks that decide apart
RESERVED = frozenset({*SOURCES, *CLOCKS, *FUNCTIONS, FREQUENCY, DEPTH})
