"""What the expressions of a policy mean on tensors: every leaf and every operation, on numbers that are written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mccompile import ir
from mccompile.lowering.expressions import (
    EPS,
    Leaves,
    evaluate,
    frame_difference,
    horner,
    last_frames,
    normalise,
    reduce_to,
)
from mccompile.lowering.slots import LikeAnchors

NAN = float("nan")
LATENT = ir.SourceRef("latent")
MOVED, MOTION = ir.Change("l1", LATENT, "step", ir.Granularity.CHUNK), ir.FrameDiff(LATENT, True)
TABLE, ALIKE = ir.Table((1.0, 2.0)), ir.Similarity(LATENT, 3)
SIGMA, BEFORE = ir.ClockRef("sigma"), ir.Before(ir.ClockRef("sigma"))
SIGNALS = {
    "early": ir.Signal("early", ir.Apply("add", (ir.ParamRef("a"), SIGMA)), ir.Granularity.CHUNK, False),
    "late": ir.Signal("late", MOTION, ir.Granularity.TOKEN, True),
}
ROW = torch.tensor([[[[1.0, 2.0, 4.0]]]])
LEAVES = Leaves(
    params={"a": torch.tensor(3.0)}, clock={"sigma": torch.tensor(0.5), "depth": torch.tensor(0.25)},
    tables={TABLE: torch.tensor(7.0)}, changes={MOVED: torch.tensor(0.125)},
    motions={MOTION: torch.tensor([[[[1.0, NAN, 4.0]]]])}, late={"late": ROW}, signals=SIGNALS,
    accounts={"account": torch.tensor(10.0), "debt": torch.tensor(20.0)}, pasts={BEFORE: torch.tensor(6.0)},
    places=torch.zeros(1, 3), alike={LikeAnchors("latent", 3): torch.tensor(0.75)}, frequency=torch.tensor(0.1),
)  # fmt: skip
VALUES: dict[str, tuple[ir.Expr, list[float]]] = {
    "a parameter": (ir.ParamRef("a"), [3.0]),
    "a signal": (ir.SignalRef("early"), [3.5]),
    "a late signal": (ir.SignalRef("late"), [1.0, 2.0, 4.0]),
    "the clock": (SIGMA, [0.5]),
    "the depth": (ir.Depth(), [0.25]),
    "a table": (TABLE, [7.0]),
    "an earlier number": (BEFORE, [6.0]),
    "stairs": (ir.Stairs(ir.SignalRef("late"), (2.0, 3.0), (10.0, 20.0, 30.0)), [10.0, 20.0, 30.0]),
    "the largest around": (ir.Around("max", ir.SignalRef("late"), 1), [2.0, 4.0, 4.0]),
    "an area": (ir.Area((0.0, 1.0), (0.0, 0.5)), [1.0, 0.0, 0.0]),
    "a distance": (MOVED, [0.125]),
    "what is alike": (ALIKE, [0.75]),
    "a motion": (MOTION, [1.0, 1.0, 4.0]),
    "a normalised motion": (ir.Normalise("max", MOTION, ir.Const(0.0), ir.Const(1.0)), [1.0, 1.0, 1.0]),
    "a normalised signal": (ir.Normalise("max", ir.SignalRef("late"), ir.Const(0.0), ir.Const(1.0)), [0.25, 0.5, 1.0]),
    "a polynomial": (ir.Polynomial(ir.SignalRef("late"), (1.0, 0.0, -2.0)), [-1.0, 2.0, 14.0]),
    "an account": (ir.Accumulate(ir.SignalRef("late"), "debt"), [21.0, 22.0, 24.0]),
    "a reduction": (ir.Reduce("max", ir.SignalRef("late"), ir.Granularity.CHUNK), [4.0]),
    "an operation": (ir.Apply("sub", (ir.ParamRef("a"), SIGMA)), [2.5]),
    "a frequency": (ir.Frequency(), [0.1]),
}


@pytest.mark.parametrize("how", VALUES)
def test_an_expression_has_the_value_of_its_definition(how: str) -> None:
    expr, wanted = VALUES[how]
    found = evaluate(expr, LEAVES)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx(wanted)


def test_a_literal_is_a_number() -> None:
    assert evaluate(ir.Const(0.5), LEAVES) == 0.5
    assert not isinstance(evaluate(ir.Polynomial(ir.Const(2.0), (1.0, 3.0)), LEAVES), torch.Tensor)
    assert evaluate(ir.Polynomial(ir.Const(2.0), (1.0, 3.0)), LEAVES) == 5.0


@pytest.mark.parametrize(
    ("expr", "why"),
    [(ir.Around("max", SIGMA, 1), "the rows and columns of a frame"),
     (ir.SpectralWeight(0, 1, 4, ir.Const(0.1)), "which the host knows"),
     (LATENT, "source latent outside a change or a frame difference"), (ir.Frequency(), "outside the gain")],
)  # fmt: skip
def test_what_a_call_lacks_is_an_error(expr: ir.Expr, why: str) -> None:
    with pytest.raises(KeyError, match=why):
        evaluate(expr, replace(LEAVES, places=None, frequency=None))


M = torch.tensor([[[[1.0, 2.0, 5.0], [0.0, 0.0, 0.0]]]])


@pytest.mark.parametrize("power", [1.0, 2.0, torch.tensor(1.0), torch.tensor(2.0)])
def test_motions_are_normalised_frame_by_frame(power: float | torch.Tensor) -> None:
    """Of a frame without motion all weigh the least, and nothing is divided by 0."""
    found = [normalise("mean", M, 0.0, 1.0), normalise("max", M, 0.0, 1.0), normalise("min_max", M, 0.2, power)]  # type: ignore[arg-type]
    p = float(power)
    wanted = ([1 / (8 / 3), 2 / (8 / 3), 5 / (8 / 3)], [0.2, 0.4, 1.0], [0.2, 0.2 + 0.8 * 0.25**p, 1.0])
    for value, row, least in zip(found, wanted, (0.0, 0.0, 0.2), strict=True):
        assert value.shape == M.shape
        assert value[0, 0, 0].tolist() == pytest.approx(row)
        assert value[0, 0, 1].tolist() == pytest.approx([least] * 3)


@pytest.mark.parametrize("norm", ["mean", "max", "min_max"])
def test_a_small_motion_is_weighed_against_a_small_number(norm: ir.Norm) -> None:
    """A frame of nothing but noise does not weigh as much as one that moves."""
    m = torch.tensor([[[[0.0, EPS]]]])
    wanted = {"mean": [0.0, 1 / 1.5], "max": [0.0, 0.5], "min_max": [0.0, 0.5]}[norm]
    assert normalise(norm, m, 0.0, 1.0)[0, 0, 0].tolist() == pytest.approx(wanted)  # type: ignore[arg-type]
    assert normalise(norm, m, 0.0, torch.tensor(1.0))[0, 0, 0].tolist() == pytest.approx(wanted)  # type: ignore[arg-type]


VALUE = torch.arange(24.0).reshape(1, 2, 3, 4)
FINER = {ir.Granularity.STEP: (1, 2, 3), ir.Granularity.CHUNK: (2, 3), ir.Granularity.FRAME: (3,)}


@pytest.mark.parametrize("to", FINER, ids=str)
def test_a_reduction_is_over_the_finer_axes(to: ir.Granularity) -> None:
    shape = [1 if axis in FINER[to] else size for axis, size in enumerate(VALUE.shape)]
    flat = VALUE.reshape(-1, VALUE.numel() // torch.Size(shape).numel())
    for how, wanted in (("mean", flat.mean(1)), ("max", flat.amax(1)), ("min", flat.amin(1))):
        assert torch.equal(reduce_to(how, VALUE, to), wanted.reshape(shape))  # type: ignore[arg-type]


def test_a_polynomial_of_a_tensor_is_no_number_where_its_operand_is_none() -> None:
    x = torch.tensor([2.0, NAN, float("inf")])
    assert horner(x, (3.0,))[0] == 3.0
    assert horner(x, (3.0,))[1:].isnan().all()
    assert horner(x, (2.0, 1.0, -1.0)).tolist()[0] == 9.0


def frames(*values: float) -> torch.Tensor:
    """One chunk of frames with two equal tokens of two channels that have this mean magnitude."""
    return torch.tensor(values).reshape(1, 1, -1, 1, 1).expand(1, 1, len(values), 2, 2) * torch.tensor([1.0, -1.0])


@pytest.mark.parametrize("relative", [True, False])
def test_motion_is_against_the_frame_before(relative: bool) -> None:
    """The first frame of a chunk is held against the last one of the chunk before, where that was seen."""
    yes, no = torch.ones(1, 1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    h, tail = frames(2.0, 3.0, 6.0), frames(8.0)[:, :, 0]

    def motion(has_tail: torch.Tensor, first: torch.Tensor, of: torch.Tensor = h) -> list[float]:
        found = frame_difference(of, tail, has_tail, first, relative)
        assert found.shape == (1, 1, of.size(2), 2)
        torch.testing.assert_close(found[..., 0], found[..., 1], equal_nan=True)
        return found[..., 0].flatten().tolist()

    rest = [0.5, 1.0] if relative else [1.0, 3.0]
    assert motion(yes, no) == pytest.approx([0.75 if relative else 6.0, *rest])
    assert motion(no, no) == pytest.approx([1.0, *rest])
    assert motion(yes, yes) == pytest.approx([rest[0] if relative else NAN, *rest], nan_ok=True)
    assert motion(yes, yes, h[:, :, :1]) == pytest.approx([1.0 if relative else NAN], nan_ok=True)


def test_motion_from_nothing_is_a_number() -> None:
    no = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    found = frame_difference(frames(0.0, 1.0), frames(0.0)[:, :, 0], no, no, True)
    assert found[..., 0].flatten().tolist() == pytest.approx([1.0, 1 / EPS])


def test_the_last_frames_follow_the_chunks_that_run() -> None:
    """In front stands the one of the chunk before the first; in float32, whatever the source is in."""
    h = torch.arange(18.0, dtype=torch.float64).reshape(1, 3, 3, 1, 2)
    tail = -torch.ones(1, 4, 1, 2)
    found = last_frames(h, tail, torch.tensor([True, False, True]).view(1, 3, 1, 1))
    assert found.dtype == torch.float32
    assert found[0].flatten(1).tolist() == [[-1.0, -1.0], [4.0, 5.0], [-1.0, -1.0], [16.0, 17.0]]
