"""Evaluation: prompts that the judge can read, and a sheet that shows the verdicts."""

import numpy as np

from mccompile.models.embedded.evaluate import Sample, evaluation_prompts, sheet
from mccompile.models.embedded.judge import Verdict, named
from mccompile.models.embedded.scenes import COLOURS, MOTIONS


def test_prompts_are_balanced_and_stable() -> None:
    """Fifty prompts name every colour and motion several times, the same ones each time."""
    prompts = evaluation_prompts(50)
    assert prompts == evaluation_prompts(60)[:50]
    colours, motions = zip(*(named(prompt) for prompt in prompts), strict=True)
    assert min(colours.count(colour) for colour in COLOURS) >= 4
    assert min(motions.count(motion) for motion in MOTIONS) >= 6


def test_sheet_marks_what_is_right() -> None:
    """Green, yellow and red before the rows."""
    video = np.zeros((9, 16, 16, 3), np.float32)
    rows = [
        Sample("p", 0, video, Verdict(colour, motion, "red", "left", 1.0))
        for colour, motion in ((True, True), (True, False), (False, False))
    ]
    picture = sheet(rows, frames=4)
    assert picture.shape == (3 * 32, 12 + 4 * 32, 3)
    marks = picture[16::32, 4].astype(int)
    assert marks[0].argmax() == 1
    assert marks[1][0] > 200
    assert marks[1][1] > 150
    assert marks[2].argmax() == 0
    assert marks[2][1] < 100
