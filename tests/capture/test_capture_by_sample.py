"""A forward's own loop over its samples, with rows that masks select: captured for any samples and masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import capture_batched, flat_inputs, run_full
from mccompile.capture.by_sample import loops_once, other_masks, with_other_masks
from mccompile.capture.errors import ExportError
from mccompile.capture.export import export_model
from mccompile.capture.spaced import _spaced
from mccompile.capture.verify import gathered_rows, random_selection, wrong_rows
from tests.zoo_more import MORE

MASKS = torch.tensor([[0, 1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0, 0], [1] * 7, [0] * 7, [0, 0, 0, 0, 0, 1, 1]]).bool()


class _Loop(nn.Module):
    """Attention of each sample over its video rows and those of its text rows that a mask selects, in some style."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6))
        self.project = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.style)(x, text, mask)

    def padded(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = []
        for i in range(x.size(0)):
            chosen = torch.nonzero(mask[i][None, :].flatten(), as_tuple=False).flatten()
            joint = torch.cat([x[i : i + 1, None], text[i : i + 1, None][:, :, chosen, :]], dim=2)
            seen = F.scaled_dot_product_attention(joint, joint, joint, dropout_p=0.0, is_causal=False)
            rows.append(F.pad(seen, (0, 0, 0, x.size(1) + text.size(1) - seen.size(2))))
        return torch.cat(rows, dim=0).squeeze(1) * self.weight

    def reordered(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, masks = [], []
        for own, words, keep in zip(x, text, mask.bool(), strict=True):
            rows.append(torch.cat([words[keep], own, torch.zeros_like(words[~keep])], dim=0))
            masks.append(torch.cat([keep[keep], torch.ones_like(own[:, 0], dtype=torch.bool), keep[~keep]]))
        return torch.stack(rows) * torch.stack(masks)[..., None] + self.weight

    def projected(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = []
        for i, own in enumerate(x):
            words = F.silu(self.project(text[i][mask[i]])) * self.weight + 1
            keys = torch.cat([own, words]).unsqueeze(0)
            rows.append(F.scaled_dot_product_attention(own.unsqueeze(0), keys, keys).flatten(0, 1))
        return torch.stack(rows)

    def turned(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = []
        for i in range(0, x.size(0)):
            (where,) = mask[i].nonzero(as_tuple=True)
            words = text[i].transpose(0, 1).index_select(1, where).transpose(-1, -2)
            more = text.size(1) - words.shape[0]
            rows.append(F.pad(words - words[:, :1], (0, 0, 0, more), value=2.0))
        return torch.cat([x, torch.stack(rows)], 1)

    def by_number(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[i] + 1 if i == 0 else x[i] for i in range(x.size(0))])

    def running(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(6)
        for row in x:
            total = total + row
        return total[None]

    def last(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for i in range(x.size(0)):
            row = x[i]
        return row[None] + x[i]

    def shortest(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[i] if text[i][mask[i]].size(0) > 3 else x[i] + 1 for i in range(x.size(0))])

    def ragged(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([text[i][mask[i]] for i in range(x.size(0))])

    def softened(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([text[i][mask[i]].softmax(0).sum(0) for i in range(x.size(0))])

    def some(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([text[i][mask[i]][:1] for i in range(x.size(0))])

    def twice(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = []
        for row in x:
            rows += [row, row + 1]
        return torch.stack(rows)

    def written(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        made = torch.zeros_like(x)
        for i in range(x.size(0)):
            made[i] = x[i] + 1
        return made


def _call(tokens: int, masks: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    samples, words = masks.shape
    x, text = (torch.randn(samples, n, 6, generator=generator, dtype=torch.float64) for n in (tokens, words))
    return {"x": x, "text": text, "mask": masks}


@pytest.mark.parametrize("style", ["padded", "reordered", "projected", "turned"])
def test_a_loop_over_samples_is_captured_for_any_masks(style: str) -> None:
    model = _Loop(style).double().eval()
    masks = MASKS[2:] if style == "turned" else MASKS  # it takes the first selected entry: of channels, not of rows
    exported = export_model(model, _call(5, masks[:3]), _call(8, masks[:1, :5]))
    assert exported.looped
    for number, (tokens, chosen) in enumerate([(5, masks), (8, masks[1:, 2:]), (3, ~masks), (6, masks[:1])]):
        call = _call(tokens, chosen, number)
        torch.testing.assert_close(exported.module(**call), model(**call), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "style", ["by_number", "running", "last", "shortest", "ragged", "softened", "some", "twice", "written"]
)
def test_a_loop_that_treats_samples_otherwise_is_refused(style: str) -> None:
    model = _Loop(style).double().eval()
    with pytest.raises(ExportError):
        export_model(model, _call(5, MASKS[:3]), _call(8, MASKS[:1]))


def test_what_stands_in_for_the_loop_is_taken_away_again() -> None:
    before, names = torch.Tensor.__iter__, set(vars(torch.Tensor))
    model = _Loop("padded")
    with loops_once(model, _call(5, MASKS), (0,), ready=True):
        assert "range" in globals()
        assert "forward" in vars(model)
        assert set(vars(torch.Tensor)) == names  # a method more would make tensors sequences, for good
    assert torch.Tensor.__iter__ is before
    assert torch.tensor([torch.tensor(1.0)]).shape == (1,)
    assert "range" not in globals()
    assert "forward" not in vars(model)


def test_masks_that_the_model_does_not_take_prove_nothing() -> None:
    call = _call(5, MASKS[:3])
    assert len(with_other_masks(_Loop("padded").double(), call)) == 1
    assert not with_other_masks(_Loop("ragged").double(), call)  # it cannot stack them
    assert not with_other_masks(_Loop("padded").double(), call | {"x": call["x"] * torch.nan})


def test_other_masks_leave_out_other_rows() -> None:
    call = other_masks({"mask": torch.ones(3, 7), "x": torch.ones(3, 7, 2), "t": torch.ones(3), "n": 2})
    assert call["mask"].tolist() == [  # type: ignore[attr-defined]
        [0, 1, 0, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1, 0],
    ]  # fmt: skip
    assert call["x"].all()  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize(("name", "empty"), [("mochi", True), ("hunyuan15", False)])
def test_tokens_of_a_model_that_selects_text_by_masks_run_alone(name: str, empty: bool) -> None:
    family = next(f for f in MORE if f.name == name)
    model = family.model()
    captured, _ = capture_batched(model, *(family.call(s) for s in family.sizes[:2]))
    assert not captured.refusals
    assert not any(kind.mixing for kind in captured.kinds)
    call = family.call(family.sizes[2], batch=4)
    for mask in (v for k, v in call.items() if k.startswith("encoder_attention_mask")):
        mask[0, :3] = 0  # type: ignore[index]
        mask[1, 0 if empty else 2 :] = 0  # type: ignore[index]
        mask[2] = 1  # type: ignore[index]
    inputs = flat_inputs(captured, call)
    with torch.no_grad():
        run, wanted = run_full(captured, inputs), model(**call)
    torch.testing.assert_close(run.outputs, wanted, rtol=1e-9, atol=1e-9)
    rows = gathered_rows(captured, inputs, random_selection(6 * 4 * 5, 1, torch.device("cpu")))
    assert [wrong_rows(captured, site, run, rows) for site in captured.blocks] == [None, None]


@pytest.mark.parametrize("steps", [1, 2, 7, 46])
def test_spaced_numbers_are_those_of_torch(steps: int) -> None:
    for end in (1.0, 7.3, 192.0 / 31):
        spaced = _spaced(-end / 3, end, steps, torch.float32)
        assert torch.equal(spaced, torch.linspace(-end / 3, end, steps))
