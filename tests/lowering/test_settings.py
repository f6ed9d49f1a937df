"""The settings that passes get from a model: what lasts, what is wanted, and how many axes buffers have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import fx

from mccompile.capture.part import Buffer, Index, Pick, Positions, Result, RowSource, Shared, Stream
from mccompile.capture.types import Beside, CapturedModel
from mccompile.lowering.after import PASSES
from mccompile.lowering.draft import Rewritten
from mccompile.lowering.pipeline import Form, Pass, Pieces, run_passes
from tests.lowering.refusing import MADE, Call, X, part_of

aten = torch.ops.aten


def setting(name: str, pieces: Any, form: Form, kind: int = 0) -> Any:
    (found,) = (p for p in PASSES if p.name == name)
    return found.setting(cast(Pieces, pieces), (form, kind))


def port(name: str, *depends: str, beside: Beside | None = None, axis: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(name=name, beside=beside, token_axis=axis, depends=frozenset(depends))


@pytest.mark.parametrize(("makes", "made"), [(Form.MODULATED, True), (Form.MODULATED, False), (None, False)])
def test_what_a_pass_makes_beside_a_part_has_a_place_of_its_own(makes: Form | None, made: bool) -> None:
    before, after, more = (part_of({X: "x"}, lambda call, at: {MADE: at["x"]}) for _ in range(3))
    one = Pass("one", (Form.PLAIN,), lambda part, _: Rewritten(after, (more,) if made else ()), lambda *_: None, makes)
    pieces = SimpleNamespace(policy=None, parts={(Form.PLAIN, 3): before, (Form.ROWS, 0): before})
    (step,) = run_passes((one,), cast(Pieces, pieces))
    changed = {(Form.PLAIN, 3): after} | ({(Form.MODULATED, 3): more} if made else {})
    assert (step.place, step.before, step.after, step.refusal) == ((Form.PLAIN, 3), before, changed, None)
    assert pieces.parts == {(Form.ROWS, 0): before} | changed


def test_the_modulated_input_is_of_the_stream_with_the_video() -> None:
    y, z = Stream("y"), Stream("z")
    kinds = [SimpleNamespace(full=SimpleNamespace(takes=(Shared("t"), *takes))) for takes in ((X, y), (z, X), (z,))]
    streams = (port("x"), port("y", beside=Beside(0, 0)), port("z"))
    pieces = SimpleNamespace(captured=SimpleNamespace(kinds=kinds, streams=streams))
    assert [setting("modulated_input", pieces, Form.PLAIN, kind) for kind in range(3)] == [y, z, z]


def site(kind: int, *shared: str) -> Any:
    return SimpleNamespace(kind=kind, streams_in=("x",), streams_out=("made",), shared=shared, weights=())


def model(*sites: Any, **more: Any) -> CapturedModel:
    takes = (X, Shared("a"), Shared("b"))
    kinds = [SimpleNamespace(full=SimpleNamespace(takes=takes, gives=(MADE,)))] * 2
    return cast(CapturedModel, SimpleNamespace(kinds=kinds, blocks=sites, **more))


def test_what_every_block_takes_from_the_prompt_lasts() -> None:
    """Values of the timestep, the latents or the tokens do not, and what does in one block only does not either."""
    values = (port("text"), port("a", "text"), port("rows", "text", axis=1), port("clock", "t"), port("n", "latent"))
    streams = (SimpleNamespace(name="x0", beside=Beside(0, 0), depends=frozenset({"latent"})),)
    blocks = (site(0, "text", "a"), site(0, "a", "clock"), site(1, "rows", "n"))
    captured = model(*blocks, shared=values, streams=streams, entry=("x0",), moving=(), inputs=("t",))
    pieces = SimpleNamespace(captured=captured)
    assert setting("hoist", pieces, Form.ROWS, 0) == {Shared("a")}
    assert setting("hoist", pieces, Form.ROWS, 1) == frozenset()


def test_rows_that_no_block_reads_are_not_gathered() -> None:
    """Positions and picks always are."""
    read = part_of({X: "x", Shared("a"): "a", Shared("b"): "b"},
                   lambda call, at: {MADE: call(aten.mul.Tensor, (at["x"], at["a"]))})  # fmt: skip
    results: dict[Result, str] = {Shared("m"): "m", Shared("n"): "m", Shared("o"): "m", Positions("video"): "index",
                                  Pick("m"): "index"}  # fmt: skip
    gather = part_of({RowSource("m"): "m", Index(): "index"}, lambda call, at: {r: at[v] for r, v in results.items()})
    captured = model(site(0, "m", "n"), site(0, "o", "n"))
    parts = {(Form.GATHER, 0): gather, (Form.ROWS, 0): read, (Form.ROWS, 1): read}
    pieces = SimpleNamespace(captured=captured, parts=parts, per_kind=lambda form: (read, read))
    wanted = setting("strip_unused", pieces, Form.GATHER)
    assert wanted == {Shared("m"), Shared("o"), Positions("video"), Pick("m")}
    assert setting("strip_unused", pieces, Form.ROWS) is None


def test_buffers_have_as_many_axes_as_are_allocated() -> None:
    def body(call: Call, at: dict[str, fx.Node]) -> dict[Result, fx.Node]:
        return {Buffer("k"): call(aten.new_zeros.default, (at["x"], [1, 2, 3, 4])),
                Buffer("c"): call(aten.new_zeros.default, (at["x"], [1, 2, 3]))}  # fmt: skip

    kinds = [SimpleNamespace(allocate=part_of({X: "x"}, body))]
    pieces = SimpleNamespace(captured=SimpleNamespace(kinds=kinds))
    assert setting("fill_rows", pieces, Form.ROWS) == {"k": 4, "c": 3}
