"""A record of a made-up run: three chunks, five steps, a square that moves; what a page must show of it is known."""

from __future__ import annotations

import numpy as np

from mccompile.runtime.trace import Event, EventAction
from mccompile.studio.report.record import Record, Way
from mccompile.studio.report.story import LayerRegion, PlannedStep, SeenCall, SeenChunk, Story, Threshold

CHUNKS, STEPS, LAG, FRAMES, HIGH, WIDE = 3, 5, 2, 4, 4, 6  # latent frames of a chunk, places of a frame
TOKENS = FRAMES * HIGH * WIDE


def action_of(step: int) -> EventAction:
    return "full" if step < 2 else "partial" if step % 2 else "reuse"


def mask_of(step: int) -> np.ndarray:
    """Computed tokens of a chunk: all, the left half of each frame, or none."""
    mask = np.zeros((FRAMES, HIGH, WIDE), np.bool_)
    match action_of(step):
        case "full":
            mask[:] = True
        case "partial":
            mask[:, :, : WIDE // 2] = True
    return mask.reshape(-1)


def video(error: int) -> np.ndarray:
    frames = np.full((12, 64, 96, 3), 90, np.uint8)
    for i in range(12):
        frames[i, 20:40, 4 * i : 4 * i + 20] = (220, 40, 40)
    frames[7] += np.uint8(error)
    return frames


def toy(refusals: tuple[str, ...] = ("conv3d_1: convolution mixes tokens",)) -> Record:
    events, masks = [], {}
    for row in range(STEPS + LAG * (CHUNKS - 1)):
        call = []
        for chunk in range(CHUNKS):
            step = row - LAG * chunk
            active = 0 <= step < STEPS
            mask = mask_of(step) if active else np.zeros(TOKENS, np.bool_)
            action: EventAction = action_of(step) if active else "skip"
            call.append(mask)
            phase = ("warmup" if step < 2 else "fine") if active else ""
            place = (chunk, max(0, min(step, STEPS - 1)))
            events.append(Event("r", row, "cond", 0, *place, phase, action, int(mask.sum()), TOKENS, f"step {step}"))
        masks[row, "cond"] = np.stack(call)
    ways = (
        Way("vanilla", "compute", 4.0, 1.0, 1.0, (0.4,) * 9, (1e9,) * 9),
        Way("motioncache", "motioncache", 2.0, 0.4, 0.35, (0.2,) * 9, (4e8,) * 9),
    )
    about = {"model": "</script><b>toy</b>", "seed": 0}
    said = "policy motioncache is approximate: reused tokens differ from computed ones"
    weights = {call: (mask * 255).astype(np.uint8) for call, mask in masks.items()}
    thumbnails = {(c, s): np.full((8, 12, 3), colour_of(c, s), np.uint8) for c in range(CHUNKS) for s in range(STEPS)}
    return Record(
        about, said, refusals, 12, ways, (video(0), video(30)), tuple(events), masks, weights, thumbnails,
        story(events),
    )  # fmt: skip


def colour_of(chunk: int, step: int) -> tuple[int, int, int]:
    """Of a thumbnail."""
    return 40 * step, 60 * chunk, 200


def story(events: list[Event]) -> Story:
    """A plan that was wrong once, an account that grows to its threshold, two regions, and bytes that grow."""
    calls = []
    for row in range(STEPS + LAG * (CHUNKS - 1)):
        seen = []
        for event in events:
            if event.row == row:
                account = (("account", 0.02 * event.step),) if event.phase else ()
                predicted = None if not event.phase else "reuse" if (event.chunk, event.step) == (1, 1) else "dynamic"
                signal = (("drift", 0.02),) if event.phase else ()
                seen.append(SeenChunk(event.chunk, account, signal, predicted))  # type: ignore[arg-type]
        calls.append(SeenCall(row, "cond", 1000 * (row + 1), tuple(seen)))
    return Story(
        plan=tuple(PlannedStep("warmup" if s < 2 else "", "compute" if s < 2 else "dynamic") for s in range(STEPS)),
        thresholds=(Threshold("account", "fine", (None, None, 0.1, 0.1, 0.1)),),
        regions=(LayerRegion(0, 1, ""), LayerRegion(2, 5, "residual")),
        calls=tuple(calls),
        warnings=("policy motioncache: parameter floor has no influence",),
        fallbacks=("guard vote changed 3 decisions",),
        weighed="motion",
        undrawn="",
        watching=0.1,
    )
