"""Which streams are the block that rules look at, and when it cannot be looked at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mccompile.capture.types import Beside, CapturedModel
from mccompile.language.load import load_policy
from mccompile.lowering.sources import BlockStreams
from mccompile.lowering.taps import block_streams
from mccompile.lowering.types import LoweredRegion

MOVED = "l1(kept(blocks[1].residual), kept(blocks[1].residual, 2))"
POLICY = load_policy(f"policy p {{ phase a {{ reuse chunk while {MOVED} < 1 }} layers blocks[*] {{ keep residual }} }}")
APART = load_policy(
    f"policy p {{ phase a {{ front: reuse chunk while {MOVED} < 1 rear: compute every 2 steps }} "
    "layers front = blocks[0..1] { keep residual } layers rear = blocks[2..] { keep residual } }"
)
TOKENS = load_policy(
    f"policy p {{ phase a {{ compute top 50% of tokens by magnitude(latent, over = token) + {MOVED} }} "
    "layers blocks[*] { keep residual } }"
)


def model(*blocks: tuple[tuple[str, ...], tuple[str, ...]], **rows: Any) -> CapturedModel:
    """blocks: for each what its streams continue, and how they leave. rows: of streams; None where no video is."""
    sites = tuple(SimpleNamespace(streams_out=out, continues=source) for source, out in blocks)
    names = dict.fromkeys(name for source, out in blocks for name in (*source, *out))
    ports = tuple(
        SimpleNamespace(name=n, rows=rows.get(n, "video") or "", beside=Beside(0, 0) if rows.get(n, "video") else None)
        for n in names
    )
    return cast(CapturedModel, SimpleNamespace(blocks=sites, streams=ports))


ROW = tuple(((f"x{i}",), (f"x{i + 1}",)) for i in range(4))
BOTH = ((("x0", "y0"), ("x1", "y1")), (("x1", "y1"), ("x2", "y2")))
ALL = (LoweredRegion(0, 3, "residual", ()),)


@pytest.mark.parametrize(
    ("captured", "watched", "streams"),
    [
        (model(*ROW), (1,), ("x1", "x2")),
        (model(*ROW), (1, 2), ("x1", "x3")),
        (model(*ROW), (3,), ("x3", "x4")),
        (model(*BOTH), (1,), ("y1", "y2")),  # of several the last one
        (model(*BOTH, y0=None, y1=None, y2=None), (1,), ("x1", "x2")),
        (model(*BOTH, y2="3+video"), (1,), ("x1", "x2")),  # one of video alone comes first
        (model(*BOTH, x2=None, y2="3+video"), (1,), ("y1", "y2")),
        (model(*ROW[:1], (("", "x1"), ("new", "x2"))), (1,), ("x1", "x2")),
    ],
)
def test_the_stream_of_video_tokens_as_it_enters_and_leaves(
    captured: CapturedModel, watched: tuple[int, ...], streams: tuple[str, str]
) -> None:
    assert block_streams(captured, POLICY, ALL, watched) == BlockStreams(*streams)


NOWHERE = "the block continues no stream of video tokens"
OTHERS = "it is computed when `rear` is, and a rule of other layers looks at it"


def front_to(last: int) -> tuple[LoweredRegion, ...]:
    front = LoweredRegion(0, last, "residual", (), group="front")
    return front, LoweredRegion(last + 1, 3, "residual", (), group="rear")


def rear_to(last: int) -> tuple[LoweredRegion, ...]:
    rear = LoweredRegion(0, last, "residual", (), group="rear")
    return rear, LoweredRegion(last + 1, 3, "residual", (), group="front")


@pytest.mark.parametrize(
    ("captured", "policy", "regions", "watched", "why"),
    [
        (model(*ROW, x2=None), POLICY, ALL, (1,), NOWHERE),
        (model((("x0",), ("x1",))), POLICY, ALL, (0, 2), "the block has this part in several places"),
        (model(*ROW), TOKENS, ALL, (1,), "a rule computes a part of a chunk's tokens, and of the others the block"),
        (model(*ROW), APART, front_to(1), (2,), OTHERS),
        (model(*ROW), APART, front_to(1), (1, 2), OTHERS),
        (model(*ROW), APART, front_to(0), (1,), OTHERS),
        (model(*ROW), APART, front_to(2), (2, 3), OTHERS),
        (model(*ROW), APART, (*front_to(1), LoweredRegion(0, 3, "output", (), group="third")), (1, 2), OTHERS),
        (model(*ROW), APART, rear_to(1), (1, 2), OTHERS),
    ],
)
def test_what_cannot_be_looked_at_says_why(
    captured: CapturedModel, policy: Any, regions: tuple[LoweredRegion, ...], watched: tuple[int, ...], why: str
) -> None:
    found = block_streams(captured, policy, regions, watched)
    assert isinstance(found, str)
    assert found.startswith(why)


@pytest.mark.parametrize(("last", "watched"), [(1, (1,)), (1, (0, 1)), (2, (2,))])
def test_a_block_of_the_layers_whose_rule_looks_at_it_is_looked_at(last: int, watched: tuple[int, ...]) -> None:
    found = block_streams(model(*ROW), APART, front_to(last), watched)
    assert found == BlockStreams(f"x{watched[0]}", f"x{watched[-1] + 1}")


def test_blocks_that_are_always_computed_are_looked_at_by_all() -> None:
    regions = (LoweredRegion(0, 0, "residual", (), group="front"), LoweredRegion(1, 1, None, (), group="rear"),
               LoweredRegion(2, 3, "residual", (), group="rear"))  # fmt: skip
    assert block_streams(model(*ROW), APART, regions, (1,)) == BlockStreams("x1", "x2")
