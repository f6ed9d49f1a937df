"""The grid of a recorded run as a picture or a film: chunks down, steps across, cells framed by what was done."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mccompile.generate.errors import OptionRefused
from mccompile.generate.video import write_mp4
from mccompile.runtime.trace import EventAction
from mccompile.studio.report.record import Record

KINDS = (".png", ".svg", ".mp4")
CELL, FRAME, GAP, LEFT, TOP = 64, 4, 4, 28, 20  # pixels
CALLS_PER_SECOND = 6  # of a film
COLOURS: dict[EventAction, str] = {"full": "#b3402a", "partial": "#d99a2b", "reuse": "#3b7a57", "skip": "#a9adb2"}
WORDS: dict[EventAction, str] = {
    "full": "all computed", "partial": "some computed", "reuse": "reused", "skip": "waiting",
}  # fmt: skip
STEP = {"full": 140, "partial": 155, "reuse": 100, "skip": 90}  # widths of the words in the key


@dataclass(frozen=True, slots=True)
class FigureCell:
    """A chunk at one of its steps. row: of the call. x, y: of its frame.

    thumbnail: the chunk's middle frame as the step predicted it, or as the run made it where nothing is known of that.
    """

    row: int
    x: int
    y: int
    colour: str
    thumbnail: Image.Image

    @property
    def uri(self) -> str:
        """The thumbnail in a data URI."""
        out = io.BytesIO()
        self.thumbnail.save(out, "png")
        return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


@dataclass(frozen=True, slots=True)
class Figure:
    """The picture, laid out. texts and marks: (text or colour, x, y)."""

    wide: int
    high: int
    cells: tuple[FigureCell, ...]
    texts: tuple[tuple[str, int, int], ...]
    marks: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, record: Record) -> Figure:
        """The policy's first guidance branch and first sample. A step in which a chunk was not called has no cell."""
        branch = record.events[0].branch if record.events else ""
        events = [e for e in record.events if e.branch == branch and e.sample == 0 and e.phase]
        chunks = 1 + max((e.chunk for e in record.events), default=0)
        steps = 1 + max((e.step for e in events), default=0)
        thumbnails = _thumbnails(record.videos[-1], chunks)
        small = {at: _sized(picture) for at, picture in record.thumbnails.items()}
        cells = (
            FigureCell(
                e.row, *_corner(e.chunk, e.step), COLOURS[e.action], small.get((e.chunk, e.step), thumbnails[e.chunk])
            )
            for e in events
        )
        right, bottom = _corner(chunks, steps)
        texts = [(str(step), _corner(0, step)[0] + CELL // 2 - 4, 4) for step in range(steps)]
        texts += [(str(chunk), 8, _corner(chunk, 0)[1] + CELL // 2 - 6) for chunk in range(chunks)]
        marks, x = [], LEFT
        for action, word in WORDS.items():
            marks.append((COLOURS[action], x, bottom + 6))
            texts.append((word, x + 18, bottom + 6))
            x += STEP[action]
        return cls(max(right, x), bottom + 26, tuple(cells), tuple(texts), tuple(marks))

    def write(self, path: Path) -> None:
        """Writes a png, an svg or an mp4 by the file's name. Raises OSError as the file system does.

        The film fills the grid call by call, and stays for two seconds when it is full.
        """
        match path.suffix:
            case ".svg":
                path.write_text(self._svg(), encoding="utf-8")
            case ".mp4":
                rows = sorted({cell.row for cell in self.cells})
                film = [np.asarray(self._picture(row)) for row in rows]
                write_mp4(path, np.stack(film + [film[-1]] * (2 * CALLS_PER_SECOND)), CALLS_PER_SECOND)
            case _:
                self._picture().save(path, "png")

    def _svg(self) -> str:
        here = jinja2.FileSystemLoader(Path(__file__).parent)
        template = jinja2.Environment(loader=here, autoescape=True, undefined=jinja2.StrictUndefined)
        return template.get_template("figure.svg.j2").render(
            wide=self.wide, high=self.high, cells=self.cells, texts=self.texts, marks=self.marks,
            size=CELL, frame=FRAME, inner=CELL - 2 * FRAME,
        )  # fmt: skip

    def _picture(self, until: int | None = None) -> Image.Image:
        """The grid as it is after the call of a row; None: after all."""
        picture = Image.new("RGB", (self.wide, self.high), "white")
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
        for text, x, y in self.texts:
            draw.text((x, y), text, fill="black", font=font)
        for colour, x, y in self.marks:
            draw.rectangle((x, y, x + 11, y + 11), fill=colour)
        for cell in self.cells:
            if until is not None and cell.row > until:
                continue
            draw.rectangle((cell.x, cell.y, cell.x + CELL - 1, cell.y + CELL - 1), fill=cell.colour)
            picture.paste(cell.thumbnail, (cell.x + FRAME, cell.y + FRAME))
        return picture


def check_figure(path: Path) -> None:
    """Raises OptionRefused (MC0705) for a file that is no png, svg or mp4."""
    if path.suffix not in KINDS:
        raise OptionRefused(f"--figure {path}", "it is no png, no svg and no mp4", "give x.png, x.svg or x.mp4")


def _corner(chunk: int, step: int) -> tuple[int, int]:
    return LEFT + step * (CELL + GAP), TOP + chunk * (CELL + GAP)


def _thumbnails(video: np.ndarray, chunks: int) -> Sequence[Image.Image]:
    """The middle frame of each chunk, as large as a cell."""
    middle = ((np.arange(chunks) + 0.5) * len(video) / chunks).astype(int)
    return [_sized(video[min(len(video) - 1, i)]) for i in middle]


def _sized(picture: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(picture).resize((CELL - 2 * FRAME, CELL - 2 * FRAME), Image.Resampling.LANCZOS)
