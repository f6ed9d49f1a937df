"""A capture of any number of samples: each is what it is alone, and what cannot be so is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import CallError, capture, capture_batched, flat_inputs, run_full
from mccompile.capture.batch import _MIXED, _assignments, _mixes
from mccompile.capture.errors import IdentityError
from tests.zoo import zoo

SLOW = (pytest.param(name, marks=pytest.mark.slow) for name in ("skyreels", "hunyuan"))


@pytest.mark.parametrize("name", [*SLOW, "flux"])
def test_three_samples_are_what_each_is_alone(name: str) -> None:
    family = zoo(name)
    model = family.model()
    captured, _ = capture_batched(model, *(family.call(s) for s in family.sizes[:2]))
    assert "hidden_states" in captured.samples
    assert "timestep" in captured.samples
    call = family.call(family.sizes[2], batch=3)
    with torch.no_grad():
        (together,) = run_full(captured, flat_inputs(captured, call)).outputs
        (wanted,) = model(**call | ({"fps": [0]} if "fps" in call else {}))  # diffusers takes no longer list here
    torch.testing.assert_close(together, wanted, rtol=1e-10, atol=1e-10)


class _Mixing(nn.Module):
    """Its blocks subtract the mean over samples: no sample is by itself."""

    def __init__(self, model: nn.Module, mixes: bool) -> None:
        super().__init__()
        self.model, self.mixes = model, mixes

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor,
        return_dict: bool = False,
    ) -> object:  # fmt: skip
        if self.mixes:
            hidden_states = hidden_states - hidden_states.mean(0, keepdim=True) / 2
        elif hidden_states.size(0) != 1:
            raise ValueError("one sample at a time")
        return self.model(hidden_states, timestep, encoder_hidden_states, return_dict=return_dict)


@pytest.mark.parametrize(("mixes", "why"), [(True, "not what it gives on each alone"), (False, "one sample at a time")])
def test_a_model_of_one_number_of_samples_refuses_another(mixes: bool, why: str) -> None:
    family = zoo("wan")
    model = _Mixing(family.model(), mixes).eval()
    captured, _ = capture_batched(model, *(dict(family.call(s)) for s in family.sizes[:2]))
    assert not captured.samples
    assert why in captured.unbatched
    flat_inputs(captured, family.call(family.sizes[2]))
    with pytest.raises(CallError, match="has 2 samples, but the model was captured for 1"):
        flat_inputs(captured, family.call(family.sizes[2], batch=2))


class _Odd(nn.Module):
    """What it returns for several samples has another form than what it returns for each."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        alone = x.size(0) == 1
        match self.form:
            case "two rows for one sample":
                return (x.expand(2, -1),) if alone else (x,)
            case "a row of another length":
                return (x[:, :1],) if alone else (x,)
            case "one more result":
                return (x,) if alone else (x, x)
            case "another dtype":
                return (x.double(),) if alone else (x,)
        return (x.sum(),)


@pytest.mark.parametrize(
    "form", ["two rows for one sample", "a row of another length", "one more result", "another dtype", "one number"]
)
def test_results_of_another_form_are_not_those_of_each_sample_alone(form: str) -> None:
    call = {"x": torch.ones(1, 3)}
    sampled = next(_assignments(call, [True]))
    assert _mixes(_Odd(form), sampled, 2) == _MIXED


def test_a_list_of_equal_numbers_may_be_as_long_as_there_are_samples() -> None:
    """diffusers hands SkyReels-V2 `fps` as a list, one a sample."""
    family = zoo("skyreels")
    captured, _ = capture_batched(family.model(), *(family.call(s) for s in family.sizes[:2]))
    flat_inputs(captured, family.call(family.sizes[2], batch=2) | {"fps": [0, 0]})
    with pytest.raises(CallError, match="`fps` holds 2 values; captured with 1"):
        flat_inputs(captured, family.call(family.sizes[2], batch=2) | {"fps": [0, 1]})


class _Beside(nn.Module):
    """A small model whose calls have something besides samples: see KINDS."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Conv3d(5 if kind == "shared mask" else 4, 16, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList([_Attending(), _Attending()])

    def forward(self, hidden_states: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        batch, _, frames, _, _ = hidden_states.shape
        if self.kind == "shared mask":  # [1, 1, height, width], as Cosmos has it
            mask = beside.unsqueeze(2).repeat(batch, 1, frames, 1, 1)
            hidden_states = torch.cat([hidden_states, mask], 1)
        x = self.embed(hidden_states).flatten(2).transpose(1, 2)
        if self.kind == "two images":  # [2 samples, 3, 16], as first and last frame of Wan
            x = x + torch.stack([x.mean(1), beside.view(-1, 6, 16).mean(1)]).sum(0)[:, None]
        if self.kind == "scales":  # [2], one a block, as VACE has it
            x = x * beside[0]
        if self.kind == "places":  # [1, tokens], positions for all samples, as Allegro has them
            x = x + 0.1 * beside[..., None]
        for block in self.blocks:
            x = block(x, frames)
        return x


class _Attending(nn.Module):
    """Attention over all tokens, then over those of each frame, whose number is folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        x = x + F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))
        apart = x.reshape(x.shape[0] * frames, -1, 16)
        return (apart + F.scaled_dot_product_attention(*self.qkv(apart).chunk(3, -1))).view(x.shape)


class _Counting(nn.Module):
    """It makes a list as long as there are samples, as Chroma does. odd: and asks how long the list is."""

    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.own, self.odd = _Beside("none"), odd

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        listed = [2] * hidden_states.shape[0]
        scale = torch.tensor([len(listed)] if self.odd else listed).to(hidden_states.dtype)
        return self.own(hidden_states * scale[:, None, None, None, None], hidden_states)


@pytest.mark.parametrize("odd", [False, True])
def test_a_list_as_long_as_there_are_samples_is_a_tensor_of_their_number(odd: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Counting(odd).eval().requires_grad_(False)
        calls = [
            {"hidden_states": torch.randn(b, 4, *s)} for b, s in ((1, (5, 4, 6)), (1, (10, 6, 8)), (3, (6, 8, 10)))
        ]
        captured, _ = capture_batched(model, calls[0], calls[1])
        assert captured.samples == (() if odd else ("hidden_states",))
        if odd:
            assert captured.unbatched
            return
        (given,) = run_full(captured, flat_inputs(captured, calls[2])).outputs
        torch.testing.assert_close(given, model(**calls[2]))


KINDS = {
    "shared mask": lambda b, h, w: torch.ones(1, 1, h, w),
    "two images": lambda b, h, w: torch.randn(2 * b, 3, 16),
    "scales": lambda b, h, w: torch.full((2,), 0.5),
}


def test_positions_for_all_samples_are_told_from_those_of_each_by_a_call_of_several() -> None:
    """Guidance doubles the latents of the recorded calls, and not the positions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Beside("places").eval().requires_grad_(False)
        sizes = ((5, 4, 6), (10, 6, 8), (6, 8, 10))
        latents = [torch.randn(2, 4, *size) for size in sizes]
        places = [torch.arange(f * h // 2 * (w // 2), dtype=torch.float32)[None] / 99 for f, h, w in sizes]
        calls = [{"hidden_states": x, "beside": p} for x, p in zip(latents, places, strict=True)]
        captured, _ = capture_batched(model, calls[0], calls[1])
    assert captured.samples == ("hidden_states",)
    (given,) = run_full(captured, flat_inputs(captured, calls[2])).outputs
    torch.testing.assert_close(given, model(**calls[2]))


def _call(kind: str, batch: int, frames: int, height: int, width: int) -> dict[str, torch.Tensor]:
    latent = torch.randn(batch, 4, frames, height, width)
    return {"hidden_states": latent, "beside": KINDS[kind](batch, height, width)}


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_holds_samples_is_found_by_trying(kind: str) -> None:
    """The sizes are those that once hid a constant: two samples of five frames, one of ten."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Beside(kind).eval().requires_grad_(False)
        captured, _ = capture_batched(model, _call(kind, 1, 5, 4, 6), _call(kind, 1, 10, 6, 8))
        assert captured.unbatched == ""
        assert set(captured.samples) == {"hidden_states", *(["beside"] if kind == "two images" else [])}
        for batch in (1, 2):
            call = _call(kind, batch, 6, 8, 10)
            with torch.no_grad():
                (given,) = run_full(captured, flat_inputs(captured, call)).outputs
                torch.testing.assert_close(given, model(**call))


def test_a_call_that_the_graph_does_not_fit_is_told_apart() -> None:
    """A third call at which a constant of the first two shows is an error with a code."""
    model = _Beside("scales").eval().requires_grad_(False)
    calls = [_call("scales", b, f, h, w) for b, f, h, w in ((2, 5, 4, 6), (1, 10, 6, 8), (1, 5, 4, 6))]
    with pytest.raises(IdentityError, match="MC0404"):
        capture(model, *calls)


class _Table(nn.Module):
    """It has a table of positions for five frames, and computes it for other numbers."""

    def __init__(self, model: nn.Module, shift: float) -> None:
        super().__init__()
        self.model, self.table = model, nn.Buffer(self._computed(5) + shift)

    def _computed(self, frames: int) -> torch.Tensor:
        return torch.cos(torch.arange(frames, dtype=torch.float64)).view(-1, 1, 1)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor,
        return_dict: bool = False,
    ) -> object:  # fmt: skip
        frames = hidden_states.size(2)
        table = self.table if frames == 5 else self._computed(frames)
        return self.model(hidden_states + table, timestep, encoder_hidden_states, return_dict=return_dict)


def test_a_table_for_one_size_is_captured_as_it_is_computed_for_others() -> None:
    family = zoo("wan")
    model = _Table(family.model(), 0.0).eval()
    captured, _ = capture_batched(model, *(dict(family.call(s)) for s in family.sizes[:2]))
    assert captured.samples
    assert not captured.opaque
    call = family.call(family.sizes[2], batch=2)
    with torch.no_grad():
        torch.testing.assert_close(run_full(captured, flat_inputs(captured, call)).outputs, model(**call))


def test_a_table_that_differs_from_what_is_computed_is_the_models_own() -> None:
    family = zoo("wan")
    model = _Table(family.model(), 1.0).eval()
    captured, _ = capture_batched(model, *(dict(family.call(s)) for s in family.sizes[:2]))
    assert captured.opaque
