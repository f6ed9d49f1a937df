"""Which computed token the others are most like, against plain loops over tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from mccompile.runtime import nearest
from mccompile.runtime.nearest import Likeness, similarity

SIZE = 6  # tokens of a chunk: 2 frames of 3


def cells(samples: int, chunks: int = 3, seed: int = 0) -> torch.Tensor:
    """A source [B, G, F, P, C]."""
    return torch.randn(samples, chunks, 2, 3, 4, generator=torch.Generator().manual_seed(seed))


def expected(source: torch.Tensor, positions: list[int]) -> tuple[list[int], list[list[int]]]:
    """The tokens with results, and for each sample the place among `positions` of the token whose results they have."""
    tokens = source.flatten(2, 3)
    filled = [t for t in range(tokens.size(1) * SIZE) if any(p // SIZE == t // SIZE for p in positions)]
    taken = []
    for of_sample in tokens.flatten(1, 2):
        own = []
        for token in filled:
            among = [p for p in positions if p // SIZE == token // SIZE]
            likest = max(among, key=lambda p: float(cosine_similarity(of_sample[token], of_sample[p], dim=0)))
            own.append(positions.index(token if token in positions else likest))
        taken.append(own)
    return filled, taken


@pytest.mark.parametrize("at_once", [2**24, 5])
@pytest.mark.parametrize("sample", [None, 0, 1])
@pytest.mark.parametrize(
    "positions", [[1], [0, 3], [2, 8, 9, 11], [0, 1, 2, 3, 4, 5, 14, 16], [17], [*range(18)], [5, 6, 12]]
)
def test_a_token_has_the_results_of_the_likest_computed_one_of_its_chunk(
    positions: list[int], sample: int | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "AT_ONCE", at_once)
    source = cells(2)
    at = torch.tensor(positions)
    found = Likeness.of(source).filling(np.array(positions), at, sample)
    filled, taken = expected(source, positions)
    assert found.filled.tolist() == filled
    assert found.taken.tolist() == (taken if sample is None else taken[sample : sample + 1])


def test_a_lone_computed_token_that_is_selected_twice() -> None:
    """Sizes 0 and 1 are special to graphs, so a lone token is selected twice: it still is one token."""
    source = cells(1)
    found = Likeness.of(source).filling(np.array([7, 7]), torch.tensor([7, 7]), None)
    assert found.filled.tolist() == [*range(6, 12)]
    assert found.taken.tolist() == [[0] * 6]
    one = source[:, :, :1, :1]  # chunks of one token
    lone = Likeness.of(one).filling(np.array([2, 2]), torch.tensor([2, 2]), None)
    assert (lone.filled.tolist(), lone.taken.tolist()) == ([2, 2], [[0, 0]])


@pytest.mark.parametrize("at_once", [2**24, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_how_like_tokens_are_to_the_anchors_of_their_chunk(
    stride: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anchors lie in every frame, at every so many rows and columns. They themselves count as unlike all."""
    monkeypatch.setattr(nearest, "AT_ONCE", at_once)
    rows, columns = 3, 4
    source = torch.randn(2, 2, 2, rows * columns, 5, generator=torch.Generator().manual_seed(1))
    found = similarity(source, rows, stride)
    assert found.shape == source.shape[:-1]
    anchors = [y * columns + x for y in range(0, rows, stride) for x in range(0, columns, stride)]
    for b in range(2):
        for g in range(2):
            for f in range(2):
                for p in range(rows * columns):
                    own, others = source[b, g, f, p], source[b, g, :, anchors].flatten(0, 1)
                    wanted = -1.0 if p in anchors else float(cosine_similarity(own, others, dim=-1).max())
                    assert found[b, g, f, p].item() == pytest.approx(wanted, abs=1e-6)


def test_likeness_lies_between_the_bounds_of_a_cosine() -> None:
    """Rounding would put equal tokens above 1."""
    one = torch.randn(64, 1, 1, 1, 7, generator=torch.Generator().manual_seed(2))
    alike, contrary = (similarity(torch.cat([one, one * sign], 3), 1, 2) for sign in (1.0, -1.0))
    assert (alike.max().item(), contrary.min().item()) == (1.0, -1.0)
    assert alike[..., 0].unique().tolist() == [-1.0]
    nothing = similarity(torch.zeros(1, 1, 1, 4, 7), 2, 2)
    assert nothing.flatten().tolist() == [-1.0, 0.0, 0.0, 0.0]
