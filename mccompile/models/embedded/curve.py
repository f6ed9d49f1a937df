"""Draws the loss curve of a run: `python -m mccompile.models.embedded.curve RUN/loss.csv OUT.png`."""

import argparse
import csv
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH: Final = 760
HEIGHT: Final = 380
MARGIN: Final = 48
SMOOTHING: Final = 0.96


def read_losses(path: Path) -> NDArray[np.float64]:
    """Rows (samples seen, loss) of a `loss.csv`; where a run went back to a checkpoint, the later row of a step counts.

    Raises ValueError where the file has no row.
    """
    rows: dict[int, tuple[float, float]] = {}
    with path.open(newline="") as file:
        for step, batch, loss, _ in csv.reader(file):
            rows[int(step)] = (float(step) * float(batch), float(loss))
    if not rows:
        raise ValueError(f"{path} holds no step; train first")
    return np.array([rows[step] for step in sorted(rows)])


def draw(points: NDArray[np.float64]) -> Image.Image:
    """Every step's loss in grey, the running mean in blue, on a logarithmic axis."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=12)
    low, high = np.log(points[:, 1].min() * 0.95), np.log(points[:, 1].max() * 1.05)
    last = points[-1, 0]

    def place(samples: float, loss: float) -> tuple[float, float]:
        across = MARGIN + (WIDTH - 2 * MARGIN) * samples / last
        return across, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (np.log(loss) - low) / (high - low)

    for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0):
        if low <= np.log(tick) <= high:
            _, level = place(0, tick)
            pen.line([(MARGIN, level), (WIDTH - MARGIN, level)], fill=(225, 225, 225))
            pen.text((8, level - 7), f"{tick:g}", fill="black", font=font)
    for tick in np.arange(0, last, 2500):
        across, _ = place(tick, 1)
        pen.text((across - 10, HEIGHT - MARGIN + 6), f"{tick:.0f}", fill="black", font=font)
    pen.text((WIDTH // 2 - 40, HEIGHT - 22), "training samples", fill="black", font=font)
    pen.text((MARGIN, 14), "flow-matching loss (velocity, mean square), log scale", fill="black", font=font)
    pen.line([place(x, y) for x, y in points], fill=(205, 205, 205))
    mean, smooth = points[0, 1], []
    for samples, loss in points:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth.append(place(samples, mean))
    pen.line(smooth, fill=(30, 80, 200), width=2)
    return image


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("losses", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    draw(read_losses(args.losses)).save(args.out)


if __name__ == "__main__":
    main()
