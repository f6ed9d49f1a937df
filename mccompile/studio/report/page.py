"""The page of a recorded run: what the template shows, as plain data, and the HTML itself."""

from __future__ import annotations

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from plotly.offline import get_plotlyjs

from mccompile.metrics.pixels import psnr_per_frame
from mccompile.runtime.trace import Event
from mccompile.studio.report.record import Record
from mccompile.studio.report.series import series

_SHOWN = 360  # pixels: larger videos are made smaller for the page
_ERROR_GAIN = 4
_EQUAL = 100.0  # dB at which a plot shows equal frames


def render(record: Record) -> str:
    """One HTML file that opens from disk and asks no network for anything."""
    here = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    data = page_data(record)
    return here.get_template("page.html.j2").render(
        record=record,
        data=data,
        # `<` must not end the script element that the data stands in.
        json=json.dumps(data).replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
        rows=_table(record),
        whys=Counter(event.why for event in record.events).most_common(),
    )


def write_page(record: Record, path: Path) -> None:
    """Writes the page. Raises OSError as the file system does."""
    path.write_text(render(record), encoding="utf-8")


def page_data(record: Record) -> dict[str, object]:
    """What the page's script draws."""
    video = record.videos[-1]
    branch = record.events[0].branch if record.events else ""
    events = [e for e in record.events if e.branch == branch and e.sample == 0]
    masks = {row: mask for (row, name), mask in record.masks.items() if name == branch}
    weights = {row: weight for (row, name), weight in record.weights.items() if name == branch}
    quality = _decibel(record)
    return {
        "fps": record.fps,
        "frames": len(video),
        "width": video.shape[2],
        "height": video.shape[1],
        "players": _players(record),
        "psnr": quality,
        "worst": quality.index(min(quality)) if quality else 0,
        "ways": [{"name": w.name, "steps": [round(1000 * s, 3) for s in w.steps]} for w in record.ways],
        **_decisions(events, masks, weights, video.shape[1] / video.shape[2]),
        "thumbnails": _thumbnails(record),
        "weighed": record.story.weighed,
        **series(record, branch),
    }


def _decisions(
    events: Sequence[Event],
    masks: Mapping[int, NDArray[np.bool_]],
    weights: Mapping[int, NDArray[np.uint8]],
    aspect: float,
) -> dict[str, object]:
    """The grid of chunks and their own steps, and per call of the model what each chunk computed."""
    chunks = 1 + max((e.chunk for e in events), default=-1)
    steps = 1 + max((e.step for e in events if e.phase), default=-1)
    cells: list[list[dict[str, object] | None]] = [[None] * steps for _ in range(chunks)]
    calls: list[list[dict[str, object] | None]] = []
    wide = 0
    for row in sorted({e.row for e in events}):
        call: list[dict[str, object] | None] = [None] * chunks
        for place, event in enumerate(e for e in events if e.row == row):
            about: dict[str, object] = {
                "action": event.action, "share": event.computed / event.tokens if event.tokens else 0.0,
                "phase": event.phase, "why": event.why, "step": event.step,
            }  # fmt: skip
            if row in masks and event.action == "partial":
                about["mask"], wide = _digits(masks[row][place].astype(np.float64), aspect)
            if row in weights and event.action != "skip":
                about["weights"], wide = _digits(weights[row][place] / 255.0, aspect)
            call[event.chunk] = about
            if event.phase:
                cells[event.chunk][event.step] = about
        calls.append(call)
    return {"cells": cells, "calls": calls, "mask_width": wide, "shares": [_share(c) for c in calls]}


def _digits(values: NDArray[np.float64], aspect: float) -> tuple[str, int]:
    """A chunk's tokens, 0..1, as a map: a digit per place (ninths, the mean of its frames), and the width."""
    places, wide = _places(values.size, aspect)
    share = values.reshape(-1, places).mean(0)
    return "".join(str(min(9, math.ceil(9 * s))) for s in share), wide


def _places(tokens: int, aspect: float) -> tuple[int, int]:
    """Places per frame and the width of the map, for the first number of frames that gives the video's form."""
    fits = []
    for frames in range(1, tokens + 1):
        if tokens % frames == 0:
            places = tokens // frames
            high = round(math.sqrt(places * aspect))
            if high and places % high == 0 and math.isclose(high / (places / high), aspect, rel_tol=0.02):
                fits.append((frames, places, places // high))
    best = next((f for f in fits if f[0] > 1), fits[0] if fits else (1, tokens, tokens))
    return best[1], best[2]


def _share(call: Sequence[Mapping[str, object] | None]) -> float:
    shares = [float(str(chunk["share"])) for chunk in call if chunk is not None]
    return sum(shares) / len(shares) if shares else 0.0


def _decibel(record: Record) -> list[float]:
    """PSNR per frame against vanilla, equal frames at the top of the plot; nothing without vanilla."""
    if len(record.videos) < 2:
        return []
    one, other = (v.astype(np.float64) / 255.0 for v in (record.videos[-1], record.videos[0]))
    return [min(_EQUAL, value) for value in psnr_per_frame(one, other)]


def _players(record: Record) -> list[dict[str, str]]:
    """Every way's frames in one picture, vanilla first, then the error."""
    shown = [(0, record.ways[0].name)] if len(record.ways) > 1 else []
    shown.append((len(record.ways) - 1, record.ways[-1].name))
    players = [{"name": name, "sheet": _sheet(record.videos[i])} for i, name in shown]
    if len(shown) > 1:
        apart = np.abs(record.videos[-1].astype(np.int16) - record.videos[0])
        error = np.minimum(255, apart * _ERROR_GAIN).astype(np.uint8)
        players.append({"name": f"error, {_ERROR_GAIN} times", "sheet": _sheet(error)})
    return players


def _sheet(video: NDArray[np.uint8]) -> str:
    """The frames below each other as one picture in a data URI."""
    shrink = max(1, math.ceil(max(video.shape[1:3]) / _SHOWN))
    small = video[:, ::shrink, ::shrink]
    out = io.BytesIO()
    Image.fromarray(small.reshape(-1, *small.shape[2:])).save(out, "webp", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def _thumbnails(record: Record) -> dict[str, object] | None:
    """All thumbnails below each other in one picture, and the place of each by "chunk step"; None without any."""
    if not record.thumbnails:
        return None
    small = np.stack(list(record.thumbnails.values()))
    at = {f"{chunk} {step}": place for place, (chunk, step) in enumerate(record.thumbnails)}
    return {"sheet": _sheet(small), "at": at, "count": len(small)}


def _table(record: Record) -> list[tuple[str, ...]]:
    first = record.ways[0]
    return [
        (
            way.name,
            way.policy,
            f"{way.seconds:.2f}",
            f"{first.seconds / way.seconds:.2f}x",
            f"{way.tokens:.1%}",
            "-" if way.flops is None else f"{way.flops:.1%}",
        )
        for way in record.ways
    ]
