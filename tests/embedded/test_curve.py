"""The loss curve of a run."""

from pathlib import Path

import numpy as np
import pytest

from mccompile.models.embedded.curve import HEIGHT, WIDTH, draw, read_losses


def test_later_rows_of_a_step_count(tmp_path: Path) -> None:
    """A run that went back to a checkpoint wrote some steps twice; the file's last word stands."""
    path = tmp_path / "loss.csv"
    path.write_text("1,8,2.0,1.0\n2,8,1.5,2.0\n3,8,9.9,3.0\n2,8,1.4,9.0\n3,8,1.2,10.0\n")
    assert read_losses(path).tolist() == [[8.0, 2.0], [16.0, 1.4], [24.0, 1.2]]


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    """There is nothing to draw."""
    (tmp_path / "loss.csv").write_text("")
    with pytest.raises(ValueError, match="train first"):
        read_losses(tmp_path / "loss.csv")


def test_a_falling_loss_falls(tmp_path: Path) -> None:
    """The blue line ends lower than it begins."""
    steps = np.arange(1.0, 400.0)
    image = np.asarray(draw(np.stack([8 * steps, 2.0 * 0.99**steps], axis=1)))
    assert image.shape == (HEIGHT, WIDTH, 3)
    rows, columns = np.nonzero((image == (30, 80, 200)).all(-1))
    assert rows[columns.argmin()] < rows[columns.argmax()] - 100
