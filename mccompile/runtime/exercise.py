"""Runs every part of an engine once per probe call, so that a recording backend sees all that a run can ask for.

Each part is called at two sizes and with several numbers of rows: sizes that differ are dynamic in the compile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from mccompile.backend.pieces import ByPieces
from mccompile.backend.record import Recorder
from mccompile.capture.errors import CallError
from mccompile.capture.types import CapturedModel
from mccompile.lowering.locate import timestep_of
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.phases import Grid
from mccompile.runtime.blocks import Backend, Env
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.engine import Engine, masked_by_input
from mccompile.runtime.execute import merge, selected
from mccompile.runtime.layout import Layout, layout_of
from mccompile.runtime.nearest import Filling
from mccompile.runtime.rows import FindFilling, worth_of
from mccompile.runtime.shared import Value
from mccompile.runtime.store import Memory, States
from mccompile.runtime.upload import parameters


def record_roles(
    recorder: Recorder, lowered: LoweredModel, bound: BoundPolicy, calls: Sequence[Mapping[str, Value]], *,
    several: bool = False, instead: Callable[[Backend], Backend] | None = None, chunks: Sequence[int] = (),
) -> None:
    """Records what runs of `lowered` ask for.

    chunks: of the video of each call, where attention does not tell them apart and the clock does.
    several: record every role for several samples too; otherwise only the roles that a policy with `batch` runs so.
    instead: puts something else in place of some roles, which then are not recorded.
    Raises CallError (MC0405) where the model was captured at one number of samples and several are wanted.
    """  # fmt: skip
    captured = lowered.captured
    pieces = ByPieces(recorder if instead is None else instead(recorder))
    engine = Engine(lowered, pieces)
    exercise(engine, bound, calls, chunks)
    if pieces.divided:  # both calls may be of one prompt, so that what data decides was the same
        exercise(Engine(lowered, ByPieces(pieces.backend, fewer=True)), bound, calls[:1], chunks[:1])
    several = several and not captured.each  # whose samples are run one by one
    if several and not captured.samples:
        place, cause = f"{captured.model_class}.forward", f"it takes one number of samples: {captured.unbatched}"
        raise CallError(place, cause, "compile without `batches`, from calls with as many samples as you need")
    if several or lowered.together is not None:
        with recorder.several_samples(lambda role: several or role.part in ("gather", "block", "rows")):
            exercise(engine, bound, [_repeated(captured, c, n) for c, n in zip(calls, _BATCHES, strict=True)])


_BATCHES = (4, 6)  # samples: no sizes that calls at small sizes are likely to have elsewhere


def _repeated(captured: CapturedModel, inputs: Mapping[str, Value], count: int) -> dict[str, Value]:
    def more(value: Value) -> Value:
        return torch.cat([value] * count) if isinstance(value, torch.Tensor) else value

    return {n: more(v) if n in captured.samples else v for n, v in inputs.items()}


@torch.no_grad()
def exercise(
    engine: Engine, bound: BoundPolicy, calls: Sequence[Mapping[str, Value]], chunks: Sequence[int] = ()
) -> None:
    """Touches every callable of `engine` with each of the calls (flat inputs by name, at different sizes)."""
    for number, inputs in enumerate(calls):
        shared = engine.values.get(inputs)
        env = engine.entry(shared)
        moment = moment_of(chunks[number]) if chunks else first_moment(engine, inputs, env)
        layout = layout_of(engine.lowered, moment, inputs, engine.video(env))
        memory, states = Memory(), States()
        for share in _SHARES if engine.uses_rows else (1.0,):
            after = _regions(engine, bound, inputs, shared, env, layout, memory, share)
        for decide in engine.decides.values():
            if decide is not None:
                host = np.zeros((layout.batch, len(decide.spec.host), layout.chunks), np.float32)
                params = parameters(decide.spec.params, bound, engine.video(env).device)
                sources = engine.sources(decide.spec, inputs, shared, after)
                decide.run(host, params, sources, States(), layout, moment)
        if engine.observe is not None:
            params = parameters(engine.observe.spec.params, bound, engine.video(env).device)
            want = np.ones((layout.batch, layout.chunks), bool)
            engine.observe.run(want, params, engine.cached_output(after, inputs), states, layout, moment)
        engine.postlude.run(after, shared, inputs)


_SHARES = (0.45, 1.0)  # of the tokens: two numbers of rows for each size
_FILLED = 0.8  # of the tokens, which have results where some take from others


def _regions(
    engine: Engine, bound: BoundPolicy, inputs: Mapping[str, Value], shared: Mapping[str, Value], env: Env,
    layout: Layout, memory: Memory, share: float,
) -> Env:  # fmt: skip
    seen = engine.prefixes.seen(inputs, layout, bound.reach) if engine.uses_rows else None
    rows = np.zeros((layout.batch, layout.tokens), bool)
    rows[:, : max(2, int(share * layout.tokens))] = True
    for number, region in enumerate(engine.lowered.regions):
        if seen is None:
            env = engine.blocks.run_plain(region, env, shared)
        else:
            chosen = selected(engine.blocks, rows, seen, env, shared, _taking_first(layout), worth_of(bound.reach))
            env = merge(engine.blocks, region, number, env, shared, chosen, memory)
    return env


def _taking_first(layout: Layout) -> FindFilling:
    """Some more tokens than are computed have results, all of them those of the first one: a third number of rows."""

    def fill(positions: np.ndarray, index: torch.Tensor, sample: int | None) -> Filling:
        filled = torch.arange(max(2, int(_FILLED * layout.tokens)), device=index.device)
        return Filling(filled, torch.zeros_like(filled).repeat(layout.batch if sample is None else 1, 1))

    return fill


def first_moment(engine: Engine, inputs: Mapping[str, Value], env: Env) -> Moment:
    """A first step of as many chunks as attention tells apart, at least one; or as have timesteps of their own."""
    grid, told = engine.lowered.captured.grid, inputs.get(timestep_of(engine.lowered.captured))
    chunks = 1
    if masked_by_input(engine.lowered.captured) and isinstance(told, torch.Tensor) and told.dim() > 1:
        chunks = told.size(1)
    elif grid is not None:
        lengths = engine.prefixes.lengths(inputs, layout_of(engine.lowered, moment_of(1), inputs, engine.video(env)))
        chunks = np.unique(lengths).size
    return moment_of(chunks)


def moment_of(chunks: int) -> Moment:
    """A first step of that many chunks."""
    times = tuple(ChunkTime(c, "active", 0) for c in range(chunks))
    return Moment("probe", 0, "probe", Grid(1, (0.0,), (0.0,)), times, chunks)

