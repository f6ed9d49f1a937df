"""Which measure meets a budget: pure, and lawful for any sizes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mccompile import ir
from mccompile.policy.budget import first_within, in_words, measures

AUTO = ir.Cache("auto", "auto", "auto", 1000, None, False)
DTYPES = ("auto", "model", "float32", "bfloat16", "float16", "float8")
caches = st.builds(
    ir.Cache, st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from(("auto", "model", "cpu")),
    st.none() | st.integers(1, 10**12), st.none() | st.integers(1, 9), st.booleans(),
)  # fmt: skip


@given(caches, st.booleans())
def test_no_word_of_the_policy_is_overruled_and_none_is_left_open(cache: ir.Cache, accelerator: bool) -> None:
    options = measures(cache, accelerator)
    for option in options:
        for name in ("dtype", "residual", "device"):
            assert getattr(option, name) != "auto"
            assert getattr(cache, name) in ("auto", getattr(option, name))
        assert replace(option, dtype=cache.dtype, residual=cache.residual, device=cache.device) == cache
    assert len(set(options)) == len(options)
    assert measures(options[0], accelerator)[0] == options[0]  # what is settled stays settled


@given(caches, st.booleans())
def test_without_a_budget_nothing_is_done(cache: ir.Cache, accelerator: bool) -> None:
    options = measures(replace(cache, budget=None), accelerator)
    assert [(o.dtype, o.residual, o.device) for o in options] == [
        tuple("model" if word == "auto" else word for word in (cache.dtype, cache.residual, cache.device))
    ]


def test_the_ladder() -> None:
    dtypes = [("model", "model"), ("model", "bfloat16"), ("bfloat16", "bfloat16"), ("float8", "bfloat16")]
    assert [(o.dtype, o.residual, o.device) for o in measures(AUTO, accelerator=False)] == [
        (*d, "model") for d in dtypes
    ]
    assert [(o.dtype, o.residual, o.device) for o in measures(AUTO, accelerator=True)] == [
        (*d, device) for device in ("model", "cpu") for d in dtypes
    ]


def test_an_exact_policy_with_a_budget_can_only_move_away() -> None:
    named = replace(AUTO, dtype="model", residual="model")
    assert [o.device for o in measures(named, accelerator=True)] == ["model", "cpu"]
    assert len(measures(named, accelerator=False)) == 1


@given(st.integers(1, 100), st.lists(st.integers(1, 100), min_size=8, max_size=8))
def test_the_first_that_fits_is_taken(budget: int, sizes: list[int]) -> None:
    options = measures(replace(AUTO, budget=budget), accelerator=True)
    of = dict(zip(options, sizes, strict=True))
    found = first_within(options, of.__getitem__)
    if found is None:
        assert min(sizes) > budget
    else:
        assert of[found] <= budget
        assert all(of[o] > budget for o in options[: options.index(found)])


def test_in_words() -> None:
    assert in_words(measures(AUTO, accelerator=True)[-1]) == (
        "keys and values in float8, residuals in bfloat16, in host memory"
    )
    assert in_words(AUTO) == (
        "keys and values in the model's dtype, residuals in the model's dtype, on the model's device"
    )
