"""What the engine knows by itself: where the video tokens lie, what each source is, what a run reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile.backend.role import Role
from mccompile.capture.part import Additive, Input, Modulated, Shared, Stream
from mccompile.capture.types import Beside, ModulatedInput, OneFrame, Port, TokenGrid
from mccompile.language.load import load_policy
from mccompile.lowering.sources import (
    BlockStreams,
    Located,
    ModelOutput,
    Probe,
    ProbeOutput,
    RegionInput,
    RegionOutput,
    VideoStream,
)
from mccompile.lowering.types import LoweredRegion
from mccompile.runtime.engine import Engine, masked_by_input, tokens_of
from mccompile.runtime.errors import NoForecast
from mccompile.runtime.operands import Misplaced

GRID = TokenGrid("latent", (2, 3, 4), (1, 1, 1))
LATENT = {"latent": torch.zeros(1, 4, 1, 2, 3)}  # 6 tokens
ROWS = torch.arange(10.0).view(1, 10, 1)


ALONE = Beside(0, 0)


def port(name: str, beside: Beside | None = ALONE, rows: str = "video", axis: int | None = 1) -> Port:
    return Port(name, axis, rows, frozenset(), None, beside)


def region(**more: Any) -> LoweredRegion:
    return LoweredRegion(**{"first": 0, "last": 0, "keep": None, "pairs": (("x", "y"),), **more})


def engine(*ports: Port, grid: object = GRID, **more: Any) -> Any:
    """One of which only these parts are there."""
    captured = {"entry": ("x",), "grid": grid, "streams": ports, "shared": (), "sources": (), "kinds": (), "blocks": ()}
    captured |= {name: more.pop(name) for name in [*captured, "gathered"] if name in more}
    lowered = {"captured": SimpleNamespace(**captured), "regions": (region(),), "located": {}}
    lowered |= {name: more.pop(name) for name in [*lowered, "policy"] if name in more}
    made = object.__new__(Engine)
    vars(made).update(_ports={p.name: p for p in ports}, lowered=SimpleNamespace(**lowered), _modulated=None)
    vars(made).update(more)
    return made


def rows(found: torch.Tensor) -> list[float]:
    return found.flatten().tolist()


def test_the_streams_that_enter_the_blocks_are_those_of_the_prelude() -> None:
    assert engine(port("x")).entry({"x": ROWS, "other": 1}) == {"x": ROWS}


def test_the_tokens_are_in_the_stream_that_holds_them_alone() -> None:
    made = engine(port("text", None, "text"), port("both", Beside(2, 0), "2+video"), port("x"), port("more"))
    assert made._of_video(["text", "both", "x", "more"]) == "x"
    assert made._of_video(["text", "both"]) == "both"
    assert made._of_video(["text"]) == "text"


@pytest.mark.parametrize(
    ("beside", "axis", "expected"),
    [
        (Beside(2, 3), 1, range(2, 7)), (Beside(0, 4), 1, range(6)), (Beside(3, 0), 1, range(3, 10)),
        (Beside(0, 0), 1, range(10)), (None, 1, range(10)), (Beside(None, 3), 1, range(10)),
        (Beside(2, None), 1, range(10)), (Beside(2, 3), 2, range(10)),
    ],
)  # fmt: skip
def test_the_first_stream_without_the_rows_beside_the_tokens(
    beside: Beside | None, axis: int, expected: range
) -> None:
    """Where the numbers of the others are known, and the tokens lie along the usual axis; with them otherwise."""
    assert rows(engine(port("x", beside, axis=axis)).video({"x": ROWS})) == [*expected]


PLACES = torch.tensor([[[0, y, x] for y in (0, 1) for x in range(3)] + [[1, 0, x] for x in range(4)]])
ONE = OneFrame("flat", 1, "places")
FLAT = {"flat": torch.zeros(1, 10, 1), "places": PLACES}  # an image of 6 tokens, and 4 of a given one behind it


@pytest.mark.parametrize(
    ("beside", "axis", "grid", "inputs", "expected"),
    [
        (Beside(2, 3), 1, GRID, LATENT, range(2, 7)), (Beside(0, 0), 1, GRID, LATENT, range(10)),
        (Beside(None, 1), 1, GRID, LATENT, range(3, 9)), (Beside(3, None), 1, GRID, LATENT, range(3, 9)),
        (None, 1, GRID, LATENT, range(10)), (Beside(2, 3), None, GRID, LATENT, range(10)),
        (Beside(0, 0), 1, ONE, FLAT, range(6)), (Beside(0, 0), 1, None, {}, range(10)),
    ],
)  # fmt: skip
def test_the_tokens_of_the_grid_among_the_rows_of_a_value(
    beside: Beside | None, axis: int | None, grid: object, inputs: dict[str, Any], expected: range
) -> None:
    """Images that are given lie behind the tokens and are none of them."""
    made = engine(port("value", beside, axis=axis), grid=grid)
    assert rows(made.tokens("value", ROWS, inputs)) == [*expected]


def test_rows_of_the_text_before_the_tokens_and_a_given_image_behind_them() -> None:
    text = torch.cat([torch.full((1, 3, 1), -1.0), ROWS], 1)
    beside = OneFrame("flat", 1, "places", Beside(3, 0))
    places = torch.cat([torch.zeros(1, 3, 3, dtype=torch.int64), PLACES], 1)
    for known in (Beside(3, 0), Beside(3, None)):
        made = engine(port("value", known), grid=beside)
        assert rows(made.tokens("value", text, {**FLAT, "places": places})) == [*range(6)]


def test_frames_that_lie_along_the_samples_are_put_behind_each_other() -> None:
    grid = TokenGrid("latent", (2, 3, 4), (1, 1, 1), apart=True)
    inputs, value = {"latent": torch.zeros(2, 4, 3, 1, 2)}, torch.arange(12.0).view(6, 2, 1)
    made = engine(port("value", None), grid=grid)
    assert made.tokens("value", value, inputs).tolist() == value.view(2, 6, 1).tolist()
    assert made._narrowed(value, 1, Beside(0, 0), inputs).tolist() == value.view(2, 6, 1).tolist()
    assert tokens_of(made.lowered.captured, inputs) == 6


def test_what_each_source_is_before_the_layers_run() -> None:
    x, y, text = torch.ones(1, 6, 2), torch.full((1, 6, 2), 5.0), torch.full((1, 9, 2), 7.0)
    made = engine(
        port("x"), port("y"), port("z"), port("text", Beside(1, 2)),
        regions=(region(), region(keep="residual", pairs=(("y", "z"),), group="")),
    )  # fmt: skip

    def of(value: Any, group: str | None = "") -> Any:
        where = Located("latent", value, "tokens", 1, (1, 1, 1))
        return made.source(where, {"a": x}, {"text": text, "steps": 3}, {"x": x, "y": y}, group)

    assert of(Input("a")) is x
    assert of(Shared("text")).shape == (1, 6, 2)
    assert of(Shared("steps")) == 3
    assert of(VideoStream()) is x
    assert rows(of(Probe())) == [4.0] * 12
    assert of(ProbeOutput()) is y
    assert of(RegionInput()) is y
    assert of(RegionInput(), "other") is x
    for late in (RegionOutput(), ModelOutput(4), BlockStreams("x", "y")):
        with pytest.raises(Misplaced, match="a decide part takes"):
            of(late)


def test_what_enters_the_first_region_of_a_group() -> None:
    """The stream of video tokens among those that it changes; that of the prelude where increments are kept."""
    x, y = torch.ones(1, 6, 2), torch.zeros(1, 6, 2)
    kept = region(keep="residual", pairs=(("", "new"), ("text", "t"), ("y", "z")), group="a")
    later = region(keep="residual", pairs=(("x", "z"),), group="a")
    ports = [port("x"), port("y"), port("z"), port("text", None, "text"), port("t", None, "text"), port("new")]
    made = engine(*ports, regions=(region(group="a"), kept, later))
    assert made._region_input({}, {"x": x, "y": y}, "a") is y
    made = engine(*ports, regions=(region(keep="increment", pairs=(("y", "z"),), group="a"), kept))
    assert made._region_input({}, {"x": x, "y": y}, "a") is x


def test_the_sources_of_a_decision_by_their_names() -> None:
    x, y = torch.ones(1, 6, 2), torch.zeros(1, 6, 2)
    made = engine(port("x"), port("y"), regions=(region(), region(keep="residual", pairs=(("y", "z"),))))
    first = Located("latent", Input("a"), "latent", 2, (1, 1, 1))
    spec = SimpleNamespace(sources=(first, Located("embedded", VideoStream(), "tokens", 1, (1, 1, 1))), told_after=())
    assert made.sources(spec, {"a": y}, {}, {"x": x}) == {"latent": y, "embedded": x}
    spec.told_after = (Located("output", ModelOutput(4), "latent", 2, (1, 1, 1)),)
    assert set(made.sources(spec, {"a": y}, {}, {"x": x})) == {"latent", "embedded"}
    spec.told_after = (*spec.told_after, Located("block", BlockStreams("x", "y"), "tokens", 1, (1, 1, 1)))
    assert made.sources(spec, {"a": y}, {}, {"x": x})["block"] is x


def test_what_a_call_tells_when_it_is_over() -> None:
    x, y, output = torch.ones(1, 6, 2), torch.full((1, 9, 2), 4.0), torch.zeros(3)
    located = {
        "latent": Located("latent", Input("a"), "latent", 2, (1, 1, 1)),
        "output": Located("output", ModelOutput(4), "latent", 2, (1, 1, 1)),
        "block": Located("block", BlockStreams("x", "y"), "tokens", 1, (1, 1, 1)),
    }
    made = engine(port("x"), port("y", Beside(1, 2)), located=located)
    found = made.told_after((output,), {"x": x, "y": y}, {})
    assert found["output"] is output
    assert rows(found["block"]) == [3.0] * 12
    assert set(found) == {"output", "block"}
    for env in ({"x": x}, {"y": y}, {}):
        assert set(made.told_after((output,), env, {})) == {"output"}
    assert made.watched == ("x", "y")
    assert engine(port("x"), located={"latent": located["latent"]}).watched == ()


def test_what_leaves_the_cached_regions() -> None:
    pairs = [(("x", "a"),), (("a", "b"), ("t", "u")), (("b", "c"),), (("c", "d"),)]
    keeps = [None, "residual", "output", None]
    made = engine(
        *(port(n) for n in "xabcd"), port("t", None, "text"), port("u", None, "text"),
        regions=tuple(region(keep=k, pairs=p) for k, p in zip(keeps, pairs, strict=True)),
    )  # fmt: skip
    env = {name: torch.zeros(1, 6, 1) for name in "xabcd"}
    assert made.cached_output(env, {}) is env["c"]
    assert made._before_cached() == "a"
    assert made.video_out((("t", "u"), ("a", "b"))) == "b"


def test_the_modulated_input_is_made_of_streams_and_shared_values() -> None:
    where = ModulatedInput("node", 1, Beside(1, 1))
    made = engine(port("x"), kinds=(SimpleNamespace(modulated=None), SimpleNamespace(modulated=where)))
    made.lowered.captured.blocks = (SimpleNamespace(kind=1),)
    made._modulated = lambda resolve: (resolve(Stream("x")) * resolve(Shared("scale")),)
    asked = Located("embedded", Modulated(), "tokens", 1, (1, 1, 1))
    found = made.source(asked, {}, {"scale": 2.0}, {"x": torch.arange(4.0).view(1, 4, 1)}, None)
    assert rows(found) == [2.0, 4.0]
    made._modulated = lambda resolve: (resolve(Input("x")),)
    with pytest.raises(Misplaced, match="a modulated part takes"):
        made.source(asked, {}, {}, {}, None)


def masked(**more: Any) -> SimpleNamespace:
    """A captured model whose masks of chunks depend on an input."""
    site = SimpleNamespace(mask=Shared("mask"))
    values = {
        "shared": (Port("mask", 1, "video", frozenset({"steps"})),),
        "kinds": (SimpleNamespace(partial=None), SimpleNamespace(partial=SimpleNamespace(attentions=(site,)))),
    }
    return SimpleNamespace(**{**values, **more})


def test_whether_an_input_says_which_keys_tokens_may_see() -> None:
    without: Any = SimpleNamespace(partial=SimpleNamespace(attentions=(SimpleNamespace(mask=None),)))
    assert masked_by_input(masked()) is True  # type: ignore[arg-type]
    for other in (
        masked(shared=(Port("mask", 1, "video", frozenset()),)), masked(kinds=(without,)), masked(shared=()),
        masked(shared=(Port("mask", None, "video", frozenset({"steps"})),)), masked(kinds=()),
        masked(shared=(Port("other", 1, "video", frozenset({"steps"})),)),
    ):  # fmt: skip
        assert masked_by_input(other) is False  # type: ignore[arg-type]


def test_a_lone_chunk_goes_to_the_graph_itself_where_their_number_varies() -> None:
    module, compiled = SimpleNamespace(forward=lambda host: ("itself", host)), lambda *given: ("compiled", *given)
    asked = list[object]()

    def backend(of: object, role: Role) -> Any:
        asked.append((of, role.part))
        return compiled

    one, two = torch.zeros(1, 3, 1), torch.zeros(1, 3, 2)
    made = engine(port("x"))
    made.lowered.captured = masked()
    call = made._by_chunks(backend, module, Role("decide"))
    assert call(one) == ("itself", one)
    assert call(two, 5) == ("compiled", two, 5)
    made.lowered.captured = masked(kinds=())
    assert made._by_chunks(backend, module, Role("decide")) is compiled
    assert asked == [(module, "decide")] * 2
    assert made._decide(None, backend) is None
    spec = SimpleNamespace(module=module, inputs=(), counts=(), weights=(), outputs=())
    assert made._decide(spec, backend).spec is spec
    assert asked[2:] == [(module, "decide")]


def test_what_of_the_prelude_runs_read() -> None:
    """By rows what blocks gather of, in place of the rows that are gathered."""
    blocks = (SimpleNamespace(shared=("rope", "text")), SimpleNamespace(shared=("text", "late")))
    ports = [port(n) for n in ("x", "rope", "text", "late", "end", "source", "drift")]
    located = {
        "latent": Located("latent", Shared("drift"), "constant", 1, (1, 1, 1)),
        "embedded": Located("embedded", Input("gone"), "constant", 1, (1, 1, 1)),
    }
    made = engine(*ports, located=located, blocks=blocks, gathered=("rope",))
    vars(made).update(
        postlude=SimpleNamespace(shared=("end", "kept elsewhere")), uses_rows=False, _modulated=None,
        blocks=SimpleNamespace(sources=("source",)),
    )  # fmt: skip
    made.lowered.captured.shared = tuple(ports[1:4])
    made.lowered.captured.sources = (ports[4], ports[5], ports[6])
    made.lowered.captured.streams = (ports[0],)
    assert set(made._needed()) == {"x", "end", "rope", "text", "late", "drift"}
    made.uses_rows = True
    assert set(made._needed()) == {"x", "end", "source", "text", "late", "drift"}
    made._modulated = object()
    assert set(made._needed()) == {"x", "end", "source", "text", "late", "drift", "rope"}


FORECAST = load_policy("foca").regions[0].forecast


@pytest.mark.parametrize(
    ("case", "rows_of", "buffers", "refused"),
    [
        ("forecasts", "video", "video", ""), ("forecasts", "1+video", "video", "steps of their own, and `y` has"),
        ("merged", "video", "video", ""), ("merged", "video", "text", "take from tokens of the video, and `k` has"),
        ("merged", "1+video", "video", "take from tokens of the video, and `y` has"), ("plain", "1+video", "text", ""),
        ("whole", "1+video", "text", ""),
    ],
)  # fmt: skip
def test_rows_beside_the_tokens_are_not_forecast_and_not_merged(
    case: str, rows_of: str, buffers: str, refused: str
) -> None:
    assert FORECAST is not None
    of = region(keep="residual", forecast=FORECAST if case in ("forecasts", "whole") else None, last=1)
    if case == "merged":
        of = region(keep="residual", nearest="latent", last=1)
    kinds = tuple(SimpleNamespace(buffers=(SimpleNamespace(name="k", rows=rows),)) for rows in ("video", buffers, "t"))
    blocks = tuple(SimpleNamespace(kind=kind) for kind in (0, 1, 2))
    made = engine(
        port("x"), port("y", rows=rows_of), regions=(region(), of), kinds=kinds, blocks=blocks,
        policy=load_policy("foca"), uses_rows=case != "whole",
    )  # fmt: skip
    if refused:
        with pytest.raises(NoForecast, match=refused):
            made._check_forecasts()
    else:
        made._check_forecasts()


def test_an_additive_mask_is_no_operand_of_the_modulated_part() -> None:
    made = engine(port("x"), kinds=(SimpleNamespace(modulated=ModulatedInput("node", 1, Beside(0, 0))),))
    made.lowered.captured.blocks = (SimpleNamespace(kind=0),)
    made._modulated = lambda resolve: (resolve(Additive("mask")),)
    with pytest.raises(Misplaced):
        made._modulated_input({}, {}, {})
